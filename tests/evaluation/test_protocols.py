"""What the report says first, and what stands under its tables."""

from semantica.evaluation.figures import CellFigures
from semantica.evaluation.networks import Networks
from semantica.evaluation.outcome import Outcome
from semantica.evaluation.requests import Cell
from semantica.evaluation.settings import EvaluationConfig
from semantica.evaluation.summary import MAX_SENTENCES, _sentences
from semantica.evaluation.tables import table_of
from semantica.measure.networks.extractors import ExtractorIdentity

SIZES = {"cats": 6, "dogs": 6, "pond": 6}


def outcome(data, names, cells):
    """The later a cell, the lower its distances."""
    identities = {name: ExtractorIdentity(name, name, name, "0" * 64, f"{name}'s resize", 8) for name in names}
    networks = Networks({}, (), {}, {}, identities)
    results = {cell: CellFigures(12, 12, 18, dict.fromkeys(names, 50.0 - i), {}, None) for i, cell in enumerate(cells)}
    return Outcome(EvaluationConfig(num=12), [], {"set": data}, networks, 32, results)


def table(a_set, *names):
    cells = [Cell("m", "set", "pictures", w) for w in (0.0, 0.5)]
    return table_of("Over w, set", cells, outcome(a_set(SIZES), names, cells))


def test_a_table_of_several_networks_states_each_with_its_resize(a_set):
    sentence = table(a_set, "inception", "encoder").protocol.sentence
    assert "inception (resize inception's resize), encoder (resize encoder's resize)" in sentence
    assert sentence.count("resize ") == 2


def test_a_table_of_one_network_states_it_as_a_figure_does(a_set):
    assert "; encoder; resize encoder's resize;" in table(a_set, "encoder").protocol.sentence


def test_a_few_cells_are_a_sentence_each_and_many_are_the_lowest_of_each_set(a_set):
    data = a_set(SIZES)
    cells = [Cell("m", "set", "pictures", w / 10) for w in range(MAX_SENTENCES + 1)]
    few = [line for line in _sentences(outcome(data, ["encoder"], cells[:-1])) if "Small n" not in line]
    assert len(few) == MAX_SENTENCES
    assert few[1] == "m at w = 0.1 on set: encoder 49; n = 12 against 18."
    many = [line for line in _sentences(outcome(data, ["inception", "encoder"], cells)) if "Small n" not in line]
    assert many == ["set: the lowest of 13 in the tables below: inception 38 (m at w = 1.2), encoder 38 (m at w = 1.2)."]

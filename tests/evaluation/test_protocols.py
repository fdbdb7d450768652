"""What stands under a table of the report."""

from semantica.evaluation.figures import CellFigures
from semantica.evaluation.networks import Networks
from semantica.evaluation.outcome import Outcome
from semantica.evaluation.protocols import _table
from semantica.evaluation.requests import Cell
from semantica.evaluation.settings import EvaluationConfig
from semantica.metrics.extractors import ExtractorIdentity


def table(a_set, *names):
    identities = {name: ExtractorIdentity(name, name, name, "0" * 64, f"{name}'s resize", 8) for name in names}
    networks = Networks({}, (), {}, {}, identities)
    cells = [Cell("m", "set", "pictures", w) for w in (0.0, 0.5)]
    results = {cell: CellFigures(12, 12, 18, dict.fromkeys(names, 1.0), {}, None) for cell in cells}
    sets = {"set": a_set({"cats": 6, "dogs": 6, "pond": 6})}
    return _table("curve", "set", cells, Outcome(EvaluationConfig(num=12), [], sets, networks, 32, results))


def test_a_table_of_several_networks_states_each_with_its_resize(a_set):
    sentence = table(a_set, "inception", "encoder").protocol.sentence
    assert "inception (resize inception's resize), encoder (resize encoder's resize)" in sentence
    assert sentence.count("resize ") == 2


def test_a_table_of_one_network_states_it_as_a_figure_does(a_set):
    assert "; encoder; resize encoder's resize;" in table(a_set, "encoder").protocol.sentence

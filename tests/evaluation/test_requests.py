"""Which samples a protocol asks for: how many, under which names and seeds, and in which batches."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semantica.diffusion.keyed_random import slot_seed
from semantica.diffusion.settings import SamplerConfig
from semantica.errors import ConfigError
from semantica.evaluation.protocols import cells_of
from semantica.evaluation.requests import Cell, Request, batches, repeated, requests_of
from semantica.evaluation.settings import EvaluationConfig

SIZES = {"cats": 5, "dogs": 4, "pond": 3}


def settings(**values):
    base = {"num": 6, "num_copies": 3, "guidance": (0.0, 0.5), "table_guidance": (0.0, 0.5), "batch_size": 4}
    return EvaluationConfig(**(base | values))


def all_requests(data, chosen):
    cells = cells_of(chosen, ["m"], ["m"], ["set"])
    return [r for cell in cells for r in requests_of(cell, "abc", data, chosen)]


def test_a_curve_asks_for_one_sample_of_each_conditioning_image_at_every_w(a_set):
    data, chosen = a_set(SIZES), settings()
    asked = all_requests(data, chosen)
    assert len(asked) == 6 * 2
    assert [r.image_id for r in asked[:6]] == [r.image_id for r in asked[6:]]
    assert len({r.image_id for r in asked}) == 6
    assert {(r.model, r.index, r.seed) for r in asked} == {("abc", 0, 0)}


def test_more_samples_than_pictures_are_further_samples_of_the_same_pictures(a_set):
    asked = requests_of(Cell("m", "set", "pictures"), "abc", a_set(SIZES), settings(num=30))
    assert len({r.name for r in asked}) == 30
    assert [r.index for r in asked] == [0] * 12 + [1] * 12 + [2] * 6


def test_one_shot_asks_for_the_copies_of_one_image_a_class(a_set):
    data, chosen = a_set(SIZES), settings(protocol=("one-shot",))
    asked = requests_of(Cell("m", "set", "classes", 0.5), "abc", data, chosen)
    assert len(asked) == 3 * 3
    assert len({r.image_id for r in asked}) == 3
    assert {data.pictures[r.image_id].page_url for r in asked} == set(SIZES)
    assert [r.index for r in asked] == [0, 1, 2] * 3
    assert requests_of(Cell("", "set", "copy"), "", data, chosen) == []


def test_a_set_can_have_a_number_of_copies_of_its_own(a_set):
    data, chosen = a_set(SIZES), settings(protocol=("one-shot",), num_copies_of=("sun397=5",))
    numbers = {name: len(requests_of(Cell("m", name, "classes", 0.5), "abc", data, chosen)) for name in ("imagenet", "sun397")}
    assert numbers == {"imagenet": 3 * 3, "sun397": 3 * 5}


def test_seeds_change_the_noise_and_condition_sets_the_pictures(a_set):
    data, chosen = a_set(SIZES), settings(seed=7, num_seeds=3, num_condition_sets=2)
    first, *others = repeated(Cell("m", "set", "pictures", 0.5), chosen)
    assert [(c.seed, c.conditions) for c in (first, *others)] == [(0, 0), (1, 0), (2, 0), (0, 1)]
    asked = [requests_of(cell, "abc", data, chosen) for cell in (first, *others)]
    assert [of[0].seed for of in asked] == [7, 8, 9, 7]
    pictures = [[r.image_id for r in of] for of in asked]
    assert pictures[0] == pictures[1] == pictures[2] != pictures[3]


def test_the_noise_of_a_sample_is_that_of_jobs_generate_and_the_same_over_w_and_models():
    request = Request("abc", "def", "picture", 2, 0.5, 3)
    assert request.noise_name == "picture/2"  # as semantica generate names it
    same = [replace(request, guidance=1.5).noise_name, replace(request, model="other").noise_name]
    assert same == [request.noise_name] * 2
    assert slot_seed("sample", 3, request.noise_name) != slot_seed("sample", 4, request.noise_name)
    names = {request.name, replace(request, guidance=1.5).name, replace(request, model="o").name, replace(request, seed=4).name}
    assert len(names) == 4


def test_a_sample_that_is_drawn_otherwise_has_another_name(a_set):
    """Features are kept by name: those of 2 steps are never read as those of 3."""
    data, cell = a_set(SIZES), Cell("m", "set", "pictures")
    names = [
        {r.name for r in requests_of(cell, "abc", data, settings(**how))}
        for how in ({}, {"sampler": SamplerConfig(num_steps=3)}, {"similarity": 0.5}, {"use_ema": False})
    ]
    assert len(set.union(*names)) == 4 * 6
    more = settings(num=12, guidance=(0.0, 2.0), num_seeds=2)  # what else is asked for changes no name
    assert names[0] < {r.name for r in requests_of(cell, "abc", data, more)}


def test_protocols_that_want_the_same_sample_ask_for_it_once(a_set):
    data = a_set(SIZES)
    both = all_requests(data, settings(protocol=("curve", "grouping", "training")))
    curve = all_requests(data, settings(protocol=("curve",)))
    assert {r.name for r in both} == {r.name for r in curve}
    drawn = [r.name for batch in batches(both, 4) for r in batch.requests]
    assert sorted(drawn) == sorted({r.name for r in both})


@given(workers=st.integers(1, 3), size=st.integers(1, 9), done=st.sets(st.integers(0, 29)))
def test_any_number_of_workers_draws_the_same_batches(workers, size, done):
    """The list of batches is cut before anybody takes one, and what is there already moves no cut."""
    asked = [Request("m", "d", f"{i:03d}", i % 2, w, 0) for w in (0.0, 0.5) for i in range(15)]
    whole = list(batches(asked, size))
    assert [r for batch in whole for r in batch.requests] == asked
    assert all(len(batch.requests) <= size and {r.guidance for r in batch.requests} == {batch.guidance} for batch in whole)
    taken = [batch for worker in range(workers) for batch in whole[worker::workers]]
    assert sorted(b.name for b in taken) == sorted(b.name for b in whole)
    drawn = {asked[i].name for i in done}
    left = list(batches(asked, size, drawn))
    assert {r.name for batch in left for r in batch.requests} == {r.name for r in asked} - drawn
    untouched = {b.name for b in whole if not drawn.intersection(r.name for r in b.requests)}
    assert untouched <= {b.name for b in left}


def test_samples_of_one_condition_are_further_samples_after_every_condition_has_one(a_set):
    asked = requests_of(Cell("m", "set", "pictures"), "abc", a_set(SIZES), settings(num=8, samples_per_condition=2))
    assert [r.index for r in asked] == [0] * 4 + [1] * 4
    assert [r.image_id for r in asked[:4]] == [r.image_id for r in asked[4:]]


def test_an_unknown_protocol_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"protocol must be of curve, details, grids, .*, got 'curves'"):
        cells_of(settings(protocol=("curves",)), ["m"], ["m"], ["set"])


def test_a_protocol_that_fills_a_page_is_asked_for_alone():
    with pytest.raises(ConfigError, match=r"protocol must be overview alone, which fills a page, got"):
        cells_of(settings(protocol=("curve", "overview")), ["m"], ["m"], ["set"])


def test_training_asks_for_every_checkpoint_and_the_others_for_the_last_of_each_run():
    models = ["one-step5", "one-step9", "two"]
    cells = cells_of(settings(protocol=("training",)), models, ["one-step9", "two"], ["set"])
    assert [c.model for c in cells] == models
    cells = cells_of(settings(protocol=("grouping",)), models, ["one-step9", "two"], ["set"])
    assert {c.model for c in cells} == {"one-step9", "two"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num": 1}, r"num must be 2 or more"),
        ({"guidance": ()}, r"guidance must be weights of 0 or more"),
        ({"table_guidance": (-0.5,)}, r"table_guidance must be weights of 0 or more"),
        ({"guidance": (0.5, 0.50000001)}, r"guidance must be all different"),
        ({"num_copies": 0}, r"num_copies must be 1 or more"),
        ({"num_copies_of": ("sun397=0",)}, r"num_copies_of must be NAME=NUMBER, 1 or more"),
        ({"num_copies_of": ("a=2", "a=3")}, r"num_copies_of must be one number a set"),
        ({"protocol": ()}, r"protocol must be one or several"),
        ({"extractor": ()}, r"extractor must be one or several"),
        ({"num_reference": 1}, r"num_reference must be 2 or more"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        settings(**values)

"""What of a configuration decides a result: declared beside each field, compared with what any version has recorded."""

import pytest

from semantica.config import added, config, free, from_args, from_dict, to_dict
from semantica.config.identity import Difference, differences, free_fields, from_record, identity
from semantica.errors import ConfigError


@config
class Layer:
    width: int
    fused: bool = free(False)
    bias: bool = added(True, before=False)


@config
class Saving:
    every: int = 100


@config
class Recipe:
    steps: int
    rate: float = 1e-4
    threads: int = free(1)
    saving: Saving = free(Saving())
    layers: tuple[Layer, ...] = (Layer(width=2),)
    extra: Layer | None = None
    dropout: float = added(0.1, before=0.0)


def texts(old, new, **kwargs):
    return [str(difference) for difference in differences(old, new, **kwargs)]


def test_the_identity_is_the_configuration_without_what_is_free():
    chosen = {"width": 2, "bias": True}
    expected = {"steps": 1, "rate": 1e-4, "layers": [chosen], "extra": None, "dropout": 0.1}
    assert identity(Recipe(steps=1)) == expected
    assert identity(Recipe(steps=1, threads=9, saving=Saving(every=7), layers=(Layer(width=2, fused=True),))) == expected
    assert identity({"recipe": Recipe(steps=1), "found": "x"}) == {"recipe": expected, "found": "x"}
    assert free_fields(Recipe(steps=1)) == ["threads", "saving", "layers.0.fused"]


def test_a_configuration_does_not_differ_from_its_own_record_nor_in_what_is_free():
    record = to_dict(Recipe(steps=1, extra=Layer(width=3)))
    assert texts(record, Recipe(steps=1, extra=Layer(width=3))) == []
    changed = Recipe(steps=1, threads=4, saving=Saving(every=1), layers=(Layer(width=2, fused=True),), extra=Layer(width=3))
    assert texts(record, changed) == []


def test_every_field_that_differs_is_named_with_both_values():
    record = to_dict(Recipe(steps=1))
    new = Recipe(steps=2, rate=1e-3, layers=(Layer(width=4),), extra=Layer(width=1))
    assert texts(record, new) == [
        "steps: was 1, now 2",
        "rate: was 0.0001, now 0.001",
        "layers.0.width: was 2, now 4",
        'extra: was null, now {"width": 1, "fused": false, "bias": ...',
    ]
    assert texts(record, Recipe(steps=1, layers=())) == ['layers: was [{"width": 2, "fused": false, "bias":..., now []']


def test_a_field_that_the_record_lacks_counts_as_the_code_before_behaved():
    record = to_dict(Recipe(steps=1))
    for name in ("rate", "threads", "saving", "extra", "dropout"):
        del record[name]
    for name in ("fused", "bias"):
        del record["layers"][0][name]
    assert texts(record, Recipe(steps=1)) == ["layers.0.bias: was false, now true", "dropout: was 0.0, now 0.1"]
    assert texts(record, Recipe(steps=1, dropout=0.0, layers=(Layer(width=2, bias=False),), threads=3)) == []
    assert texts(record, Recipe(steps=1, dropout=0.0, layers=(Layer(width=2, bias=False),), rate=1.0)) == [
        "rate: was 0.0001, now 1.0"
    ]


def test_a_record_that_lacks_fields_is_read_as_the_code_before_behaved():
    assert from_record(Recipe, {"steps": 1}) == Recipe(steps=1, dropout=0.0)
    layers = {"steps": 1, "layers": [{"width": 2}], "extra": {"width": 3}, "dropout": 0.5}
    old = from_record(Recipe, layers)
    assert (old.layers[0].bias, old.extra, old.dropout) == (False, Layer(width=3, bias=False), 0.5)
    assert from_record(Recipe, to_dict(Recipe(steps=1))) == Recipe(steps=1)
    with pytest.raises(ConfigError, match=r"layers\.0\.widht: unknown field"):
        from_record(Recipe, {"steps": 1, "layers": [{"widht": 2}]})


def test_a_field_of_another_version_refuses_unless_its_record_calls_it_free():
    record = {**to_dict(Recipe(steps=1)), "later": 3, "watching": {"every": 5}}
    (unknown,) = differences(record, Recipe(steps=1), known_free=["watching", "threads"])
    assert unknown == Difference("later", 3, None, is_unknown=True)
    assert str(unknown) == "later: was 3, and this version has no such field"


def test_plain_values_are_compared_whole_in_both_directions():
    assert texts({"a": {"b": 1}, "c": [1, 2]}, {"a": {"b": 2}, "c": (1, 2)}) == ["a.b: was 1, now 2"]
    assert texts({"a": 1, "gone": 2}, {"a": 1, "more": True}) == ["more: was null, now true", "gone: was 2, now null"]
    mixed = {"recipe": Recipe(steps=1, threads=3), "found": True}
    assert texts({"recipe": to_dict(Recipe(steps=1)), "found": False}, mixed) == ["found: was false, now true"]


def test_a_free_field_is_set_like_any_other():
    assert from_dict(Recipe, {"steps": 1, "threads": 3}).threads == 3
    parsed = from_args(Recipe, ["--steps", "1", "--threads", "4", "--saving.every", "2"], prog="test", description="")
    assert (parsed.threads, parsed.saving.every, parsed.dropout) == (4, 2, 0.1)
    with pytest.raises(ConfigError, match="threads"):
        from_dict(Recipe, {"steps": 1, "threads": "many"})

"""Registries, on a package of modules that is written for a test."""

import sys

import pytest

from semantica.config.registry import Registry
from semantica.errors import ConfigError


@pytest.fixture
def colours(tmp_path, monkeypatch):
    """The registry of a package `colours` with two modules; a third file may be added before the first look-up."""
    folder = tmp_path / "colours"
    folder.mkdir()
    (folder / "__init__.py").write_text("from semantica.config.registry import Registry\nCOLOURS = Registry('colour', __name__)\n")
    for name in ("red", "blue"):
        (folder / f"{name}.py").write_text(
            f"from colours import COLOURS\n@COLOURS.register('{name}')\ndef paint(): return '{name}'\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    import colours

    yield colours.COLOURS
    for module in [name for name in sys.modules if name.split(".")[0] == "colours"]:
        del sys.modules[module]


def test_every_module_of_the_package_is_found_at_the_first_look_up(colours):
    assert "colours.red" not in sys.modules
    assert colours["red"]() == "red"
    assert sorted(colours) == ["blue", "red"]


def test_one_more_file_is_one_more_part(colours, tmp_path):
    (tmp_path / "colours" / "green.py").write_text("from colours import COLOURS\nCOLOURS.add('green', lambda: 'green')\n")
    assert colours["green"]() == "green"


def test_an_unknown_name_is_refused_with_the_nearest_known_one(colours):
    colours.check("blue")
    with pytest.raises(ConfigError, match=r"colour 'bleu' is unknown; did you mean 'blue'\?"):
        colours.check("bleu")
    with pytest.raises(ConfigError, match=r"colour 'xyz' is unknown; known: blue, red"):
        colours.check("xyz")


def test_a_name_is_taken_once():
    registry = Registry("colour", "semantica.errors")
    registry.add("red", 1)
    with pytest.raises(ValueError, match="registered twice"):
        registry.add("red", 2)

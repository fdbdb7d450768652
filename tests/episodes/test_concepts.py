"""The corpus of concepts, from collections that are written here in the formats of their packages."""

import json

import pytest
from PIL import Image

from semantica.episodes.concepts import Collection, write_concepts
from semantica.errors import DataError

RED, BLUE = (f'<rect width="8" height="8" fill="{colour}"/>' for colour in ("red", "blue"))
NAMES = [
    {"hexcode": "1F34E", "label": "red apple", "group": 4},
    {"hexcode": "2764-FE0F", "label": "red heart", "group": 0},
    {"hexcode": "1F1EB-1F1F7", "label": "flag: France", "group": 9},
    {"hexcode": "1F3FB", "label": "light skin tone", "group": 2},
    {"hexcode": "1F34C", "label": "banana", "group": 4},
    {"hexcode": "1F1E6", "label": "regional indicator A"},
]


@pytest.fixture
def collections(tmp_path):
    """Two vendors with SVG, of which one uses an alias, and one with WebP."""
    icons = {"apple": {"body": RED}, "heart": {"body": RED}, "fr": {"body": BLUE}, "skin": {"body": BLUE}, "a": {"body": BLUE}}
    chars = {"1f34e": "apple", "2764": "heart", "1f1eb-1f1f7": "fr", "1f3fb": "skin", "1f1e6": "a"}
    first = {"icons": icons, "width": 8, "height": 8}
    second = {"icons": icons, "aliases": {"other-apple": {"parent": "apple"}}, "width": 8, "height": 8}
    for name, content, codes in (("one", first, chars), ("two", second, chars | {"1f34e": "other-apple"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "icons.json").write_text(json.dumps(content))
        (tmp_path / name / "chars.json").write_text(json.dumps(codes))
    (tmp_path / "three").mkdir()
    for code in ("1f34c", "2764-fe0f"):
        Image.new("RGB", (8, 8), "yellow").save(tmp_path / "three" / f"{code}.webp")
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    return [Collection(name, tmp_path / name) for name in ("one", "two", "three")]


def test_a_folder_holds_what_several_vendors_draw_of_one_thing(collections, tmp_path):
    assert write_concepts(tmp_path / "out", collections, tmp_path / "names.json", side_px=16) == 5
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert files == ["red-apple/one.png", "red-apple/two.png", "red-heart/one.png", "red-heart/three.webp", "red-heart/two.png"]
    with Image.open(tmp_path / "out" / "red-apple" / "two.png") as picture:
        assert picture.size == (16, 16)
        assert picture.convert("RGB").getpixel((8, 8)) == (255, 0, 0)


def test_an_alias_without_a_parent_and_a_drawing_that_is_none_are_refused(collections, tmp_path):
    path = tmp_path / "two" / "icons.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"aliases": {"other-apple": {"parent": "other-apple"}}}))
    with pytest.raises(DataError, match="no icon 'other-apple'"):
        write_concepts(tmp_path / "a", collections, tmp_path / "names.json")
    path.write_text(json.dumps(content | {"icons": content["icons"] | {"apple": {"body": "<rect"}}}))
    with pytest.raises(DataError, match="'other-apple' cannot be rendered"):
        write_concepts(tmp_path / "b", collections, tmp_path / "names.json")


def test_a_file_of_another_format_is_refused_by_name(collections, tmp_path):
    (tmp_path / "names.json").write_text("[")
    with pytest.raises(DataError, match=r"names\.json cannot be read"):
        write_concepts(tmp_path / "out", collections, tmp_path / "names.json")
    (tmp_path / "names.json").write_text(json.dumps(NAMES[-1:]))
    with pytest.raises(DataError, match="names nothing that two collections draw"):
        write_concepts(tmp_path / "out", collections, tmp_path / "names.json")

"""The corpus of concepts, from collections that are written here in the formats of their packages."""

import json

import pytest
from PIL import Image

from semantica.episodes.concepts import Collection, write_concepts
from semantica.errors import DataError

RED, BLUE = (f'<rect width="8" height="8" fill="{colour}"/>' for colour in ("red", "blue"))
HALF = '<rect width="4" height="8" fill="green"/>'
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
    icons = {"apple": {"body": RED}, "heart": {"body": HALF}, "fr": {"body": BLUE}, "skin": {"body": BLUE}, "a": {"body": BLUE}}
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


@pytest.fixture
def write(tmp_path):
    """Writes concepts that two vendors draw alike, code points -> (name, what is drawn), and returns the names of the folders."""

    def concepts(drawings):
        collections = []
        for vendor in ("one", "two"):
            folder = tmp_path / vendor
            folder.mkdir()
            icons = {code: {"body": body} for code, (_, body) in drawings.items()}
            (folder / "icons.json").write_text(json.dumps({"icons": icons, "width": 8, "height": 8}))
            (folder / "chars.json").write_text(json.dumps({code: code for code in drawings}))
            collections.append(Collection(vendor, folder))
        names = [{"hexcode": code.upper(), "label": name, "group": 1} for code, (name, _) in drawings.items()]
        (tmp_path / "names.json").write_text(json.dumps(names))
        num = write_concepts(tmp_path / "out", collections, tmp_path / "names.json", side_px=16)
        folders = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert num == 2 * len(folders)
        return folders

    return concepts


def block(column, row, colour="black"):
    return f'<rect x="{column}" y="{row}" width="3" height="2" fill="{colour}"/>'


def test_variants_by_gender_hair_family_and_direction_are_left_out_and_other_sequences_are_not(write):
    drawings = {
        "1f9d1-200d-1f33e": ("farmer", block(0, 0)),
        "1f468-200d-1f33e": ("man farmer", block(1, 4)),
        "1f3c3": ("person running", block(4, 5)),
        "1f3c3-200d-2640-fe0f": ("woman running", block(2, 1, "red")),
        "1f3c3-200d-27a1-fe0f": ("person running: facing right", block(2, 3, "red")),
        "1f9d1-200d-1f9b0": ("person: red hair", block(1, 5, "red")),
        "1f469-200d-1f466": ("family: woman, boy", block(0, 3, "blue")),
        "1f408-200d-2b1b": ("black cat", block(4, 0)),
    }
    assert write(drawings) == ["black-cat", "farmer", "person-running"]


def test_a_concept_that_looks_like_an_earlier_one_is_left_out_also_when_it_is_mirrored(write):
    drawings = {
        "1": ("magnifying glass tilted left", block(0, 0)),
        "2": ("lens", block(0, 0, "#101010")),
        "3": ("magnifying glass tilted right", block(5, 0)),
        "4": ("red glass", block(0, 0, "red")),
        "5": ("glass below", block(0, 5)),
    }
    assert write(drawings) == ["glass-below", "magnifying-glass-tilted-left", "red-glass"]


def test_names_that_differ_in_a_sign_have_folders_of_their_own(write):
    assert write({"1": ("keycap: #", block(0, 0)), "2": ("keycap: *", block(4, 5))}) == ["keycap-asterisk", "keycap-number-sign"]


def test_two_concepts_of_one_folder_name_are_refused(write):
    with pytest.raises(DataError, match="'a b' and an earlier concept have one folder name, 'a-b'"):
        write({"1": ("a-b", block(0, 0)), "2": ("a b", block(4, 5))})


def test_a_picture_that_cannot_be_decoded_is_refused_with_its_name(collections, tmp_path):
    (tmp_path / "three" / "2764-fe0f.webp").write_bytes(b"none")
    with pytest.raises(DataError, match="the drawing of red heart by three is no picture"):
        write_concepts(tmp_path / "out", collections, tmp_path / "names.json")


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

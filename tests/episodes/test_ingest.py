"""Pages in, episodes and quarantine out: nothing is lost, nothing is on both sides, and the cut into calls does not matter."""

import hashlib
import io
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from semantica.config import from_dict, to_dict
from semantica.episodes.clean import image_id
from semantica.episodes.images import ImageConfig
from semantica.episodes.ingest import IngestConfig, episode_id, ingest_pages, is_held_out, take_census
from semantica.episodes.pages import ImageRef, Page
from semantica.episodes.quarantine import MAX_TEXT, Reason
from semantica.episodes.sources import SOURCES
from semantica.errors import ConfigError
from semantica.schemas import EPISODES, QUARANTINE

TINY = ImageConfig(image_px=16, min_side_px=8)


def settings_for(**changes):
    return IngestConfig(**({"image": TINY, "held_out_share": 0.0} | changes))


def noise(seed, side=24, format="PNG"):
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).resize((side, side), Image.Resampling.NEAREST).save(stream, format)
    return stream.getvalue()


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """References to good files (some alike, some the same), to bad ones and to none."""
    root = tmp_path_factory.mktemp("pool")
    files = {f"good{i}": noise(i) for i in range(6)}
    files |= {
        "copy0": noise(0),
        "near1": noise(1, side=48),
        "small": noise(7, side=4),
        "empty": b"",
        "html": b"<html>",
        "cut": noise(8)[:-40],
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    refs = {name: ImageRef(name, str(root / name)) for name in files}
    refs["gone"] = ImageRef("gone", str(root / "gone"))
    refs["remote"] = ImageRef("https://host/a.png", "", Reason.REMOTE_URL, "not fetched")
    return refs


def held(table):
    return [image["image_id"] for row in table.to_pylist() for image in row["images"]]


def reasons(result):
    return Counter(result.quarantine.column("reason").to_pylist())


def test_an_episode_holds_the_pages_pictures_in_order(pool):
    page = Page("a/b.html", (pool["good2"], pool["good0"], pool["good1"]))
    result = ingest_pages([page], frozenset(), settings_for(), "crawl")
    assert result.train.schema == result.held_out.schema == EPISODES
    assert result.quarantine.schema == QUARANTINE
    (row,) = result.train.to_pylist()
    assert row["episode_id"] == hashlib.sha256(b"crawl\na/b.html").hexdigest()[:32] == episode_id("crawl", "a/b.html")
    assert (row["page_url"], row["source"]) == ("a/b.html", "crawl")
    assert [i["url"] for i in row["images"]] == ["good2", "good0", "good1"]
    assert [i["image_id"] for i in row["images"]] == [hashlib.sha256(noise(k)).hexdigest()[:32] for k in (2, 0, 1)]
    assert {(i["width"], i["height"], Image.open(io.BytesIO(i["bytes"])).size) for i in row["images"]} == {(16, 16, (16, 16))}
    assert (result.held_out.num_rows, result.quarantine.num_rows) == (0, 0)


def test_every_refusal_has_a_row_with_its_reason_and_detail(pool):
    names = ["good0", "good1", "copy0", "near1", "small", "empty", "html", "cut", "gone", "remote", "good5"]
    page = Page("p", tuple(pool[name] for name in names))
    result = ingest_pages([page], frozenset({image_id(noise(5))}), settings_for(), "s")
    rows = {row["url"]: (row["reason"], row["detail"]) for row in result.quarantine.to_pylist()}
    assert {url: reason for url, (reason, _) in rows.items()} == {
        "copy0": "duplicate",
        "near1": "near_duplicate",
        "small": "too_small",
        "empty": "empty_file",
        "html": "not_an_image",
        "cut": "undecodable",
        "gone": "unreadable_file",
        "https://host/a.png": "remote_url",
        "good5": "furniture",
    }
    assert all(detail for _, detail in rows.values())
    assert "good0" in rows["copy0"][1]
    assert "good1" in rows["near1"][1]
    assert result.stats["num_quarantined_duplicate"] == 1


def test_near_duplicates_stay_when_asked(pool):
    page = Page("p", (pool["good1"], pool["near1"]))
    assert ingest_pages([page], frozenset(), settings_for(drop_near_duplicates=False), "s").stats["num_train_images"] == 2


def test_a_page_without_pictures_and_a_page_that_cannot_be_read_give_one_row_each():
    pages = [Page("empty", ()), Page("broken", (), Reason.PAGE_UNREADABLE, "why")]
    result = ingest_pages(pages, frozenset(), settings_for(), "s")
    assert [(r["page_url"], r["url"], r["reason"]) for r in result.quarantine.to_pylist()] == [
        ("empty", "", "page_without_images"),
        ("broken", "", "page_unreadable"),
    ]
    assert result.stats["num_images_in"] == result.stats["num_quarantined"] == 0


def test_a_training_episode_that_gives_no_pair_is_quarantined_but_one_picture_can_be_held_out(pool):
    page = Page("p", (pool["good0"], pool["empty"]))
    result = ingest_pages([page], frozenset(), settings_for(), "s")
    assert result.train.num_rows == 0
    assert reasons(result) == {"too_few_images": 1, "empty_file": 1}
    held_out = ingest_pages([page], frozenset(), settings_for(held_out_share=0.999999), "s")
    assert held(held_out.held_out) == [image_id(noise(0))]


NAMES = ["good0", "good1", "good2", "good3", "copy0", "near1", "small", "empty", "html", "cut", "gone", "remote"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shown=st.lists(st.lists(st.sampled_from(NAMES), max_size=6), max_size=5),
    split_by=st.sampled_from(["image", "page"]),
    share=st.sampled_from([0.0, 0.3, 0.7]),
    min_images=st.integers(1, 3),
    max_pages=st.integers(1, 4),
    cut=st.integers(0, 5),
)
def test_nothing_is_lost_and_no_picture_is_on_both_sides(pool, shown, split_by, share, min_images, max_pages, cut):
    config = settings_for(split_by=split_by, held_out_share=share, min_images=min_images, max_furniture_pages=max_pages)
    pages = [Page(f"page{i}", tuple(pool[name] for name in names)) for i, names in enumerate(shown)]
    census = take_census(pages[:cut], config, "s") + take_census(pages[cut:], config, "s")
    assert census == take_census(pages, config, "s")
    common = (census.furniture(config), config, "s", census.in_training())
    whole = ingest_pages(pages, *common)
    accepted = Counter(
        (row["page_url"], i["url"]) for t in (whole.train, whole.held_out) for row in t.to_pylist() for i in row["images"]
    )
    refused = Counter((row["page_url"], row["url"]) for row in whole.quarantine.to_pylist() if row["url"])
    assert accepted + refused == Counter((page.page_url, image.url) for page in pages for image in page.images)
    stats = whole.stats
    assert stats["num_images_in"] == stats["num_train_images"] + stats["num_held_out_images"] + stats["num_quarantined"]
    assert {k.removeprefix("num_quarantined_"): v for k, v in stats.items() if k.startswith("num_quarantined_")} == reasons(whole)
    assert not set(held(whole.train)) & set(held(whole.held_out))
    assert all(len(row["images"]) >= min_images for row in whole.train.to_pylist())
    parts = [ingest_pages(part, *common) for part in (pages[:cut], pages[cut:])]
    for name in ("train", "held_out", "quarantine"):
        assert pa.concat_tables([getattr(part, name) for part in parts]) == getattr(whole, name)
    assert sum((Counter(part.stats) for part in parts), Counter()) == Counter({k: v for k, v in stats.items() if v})


def test_the_split_depends_on_the_seed_and_the_id_alone_and_keeps_its_share():
    for split_by in ("image", "page"):
        sides = {}
        for seed in (0, 1):
            config = settings_for(split_by=split_by, held_out_share=0.15, seed=seed)
            sides[seed] = [is_held_out(Page(f"p{i}", ()), f"{i:032x}", config, "s") for i in range(4000)]
            assert abs(np.mean(sides[seed]) - 0.15) < 0.02  # 3.5 standard deviations
        assert sides[0] != sides[1]
        larger = settings_for(split_by=split_by, held_out_share=0.3)
        both = [is_held_out(Page(f"p{i}", ()), f"{i:032x}", larger, "s") for i in range(4000)]
        assert all(now for before, now in zip(sides[0], both, strict=True) if before)  # a larger share only adds


def test_split_by_image_sends_a_picture_to_one_side_on_every_page():
    config = settings_for(split_by="image", held_out_share=0.5)
    name = image_id(noise(3))
    assert len({is_held_out(Page(f"p{i}", ()), name, config, "s") for i in range(50)}) == 1


def test_a_held_out_page_does_not_show_what_a_training_page_shows(pool):
    config = settings_for(held_out_share=0.5)
    pages = [Page(f"p{i}", (pool["good0"], pool[f"good{i + 1}"])) for i in range(5)]
    sides = [is_held_out(page, "", config, "s") for page in pages]
    assert len(set(sides)) == 2
    census = take_census(pages, config, "s")
    assert census.in_training() == {image_id(noise(0))}
    result = ingest_pages(pages, frozenset(), config, "s", census.in_training())
    assert reasons(result) == {"in_training": sum(sides)}
    assert held(result.held_out) == [image_id(noise(i + 1)) for i in range(5) if sides[i]]


def test_a_failing_decoder_is_a_row_with_its_words(pool, monkeypatch):
    def fail(self):
        raise MemoryError("decoder exploded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    result = ingest_pages([Page("p", (pool["good0"],))], frozenset(), settings_for(), "s")
    (row,) = result.quarantine.to_pylist()
    assert (row["reason"], row["detail"]) == ("undecodable", "MemoryError: decoder exploded")


def test_quarantine_texts_are_cut_and_always_utf8():
    page = Page("p\udce9", (ImageRef("x" * 10_000, "", Reason.BAD_URL, "odd \ud800"),))
    (row,) = ingest_pages([page], frozenset(), settings_for(), "s").quarantine.to_pylist()
    assert row["page_url"] == "p\\xe9"
    assert len(row["url"]) == MAX_TEXT
    assert row["detail"] == "odd \\ud800"


def test_a_folder_tree_goes_through_as_a_user_would_run_it(tmp_path):
    for folder in ("cats", "dogs"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            (tmp_path / folder / f"{i}.png").write_bytes(noise(i + 10 * (folder == "dogs")))
    pages = SOURCES["folder"](tmp_path)
    result = ingest_pages(pages, frozenset(), settings_for(), "pets")
    assert [row["page_url"] for row in result.train.to_pylist()] == ["cats", "dogs"]
    assert result.stats["num_train_images"] == 6


@pytest.mark.parametrize(
    ("field", "value"),
    [("held_out_share", 1.01), ("min_images", 0), ("near_duplicate_bits", 65), ("split_by", "site"), ("source", "warc")],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        from_dict(IngestConfig, {field: value})


def test_the_default_settings_survive_a_round_trip():
    assert from_dict(IngestConfig, to_dict(IngestConfig())) == IngestConfig()

"""Pages in, episodes and quarantine out: nothing is lost, nothing is on both sides, and the cut into calls does not matter."""

import hashlib
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from semantica.config import from_dict, to_dict
from semantica.episodes.census import Census
from semantica.episodes.clean import image_id
from semantica.episodes.images import ImageConfig, normalise
from semantica.episodes.ingest import IngestConfig, count_pictures, episode_id, ingest_pages, is_held_out, num_damaged
from semantica.episodes.pages import ImageRef, Page, ReadConfig
from semantica.episodes.quarantine import MAX_TEXT, DamagedFile, Reason, quarantine_table
from semantica.episodes.sources import SOURCES
from semantica.errors import ConfigError
from semantica.schemas import EPISODES, QUARANTINE

TINY = ImageConfig(image_px=16, min_side_px=8)


@dataclass
class Result:
    """All pages of one call, as tables."""

    train: pa.Table
    held_out: pa.Table
    quarantine: pa.Table
    stats: Counter


def ingest(pages, config, census=None):
    ingested = list(ingest_pages(pages, census, config, lambda data: normalise(data, config.image)))
    stats = sum((page.counts() for page in ingested), Counter())
    tables = [
        pa.Table.from_pylist([row for p in ingested if (row := getattr(p, side))], EPISODES) for side in ("train", "held_out")
    ]
    return Result(*tables, quarantine_table([row for p in ingested for row in p.refused]), stats)


def census_of(*calls, config):
    census = Census(1)
    for pages in calls:
        census.add(count_pictures(pages, config))
    return census


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
    result = ingest([page], settings_for(source="html"))
    assert result.train.schema == result.held_out.schema == EPISODES
    assert result.quarantine.schema == QUARANTINE
    (row,) = result.train.to_pylist()
    assert row["episode_id"] == hashlib.sha256(b"html\na/b.html").hexdigest()[:32] == episode_id("html", "a/b.html")
    assert (row["page_url"], row["source"]) == ("a/b.html", "html")
    assert [i["url"] for i in row["images"]] == ["good2", "good0", "good1"]
    assert [i["image_id"] for i in row["images"]] == [hashlib.sha256(noise(k)).hexdigest()[:32] for k in (2, 0, 1)]
    assert {(i["width"], i["height"], Image.open(io.BytesIO(i["bytes"])).size) for i in row["images"]} == {(16, 16, (16, 16))}
    assert (result.held_out.num_rows, result.quarantine.num_rows) == (0, 0)


def test_every_refusal_has_a_row_with_its_reason_and_detail(pool):
    names = ["good0", "good1", "copy0", "near1", "small", "empty", "html", "cut", "gone", "remote", "good5"]
    page = Page("p", tuple(pool[name] for name in names))
    config = settings_for(max_furniture_pages=2)
    others = [Page(f"q{i}", (pool["good5"],)) for i in range(2)]
    result = ingest([page], config, census_of([page, *others], config=config))
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
    assert ingest([page], settings_for(drop_near_duplicates=False)).stats["num_train_images"] == 2


def test_a_page_without_pictures_and_a_page_that_cannot_be_read_give_one_row_each():
    pages = [Page("empty", ()), Page("broken", (), Reason.PAGE_UNREADABLE, "why")]
    result = ingest(pages, settings_for())
    assert [(r["page_url"], r["url"], r["reason"]) for r in result.quarantine.to_pylist()] == [
        ("empty", "", "page_without_images"),
        ("broken", "", "page_unreadable"),
    ]
    assert result.stats["num_images_in"] == result.stats["num_quarantined"] == 0


def test_a_training_episode_that_gives_no_pair_is_quarantined_but_one_picture_can_be_held_out(pool):
    page = Page("p", (pool["good0"], pool["empty"]))
    result = ingest([page], settings_for())
    assert result.train.num_rows == 0
    assert reasons(result) == {"too_few_images": 1, "empty_file": 1}
    held_out = ingest([page], settings_for(held_out_share=0.999999))
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
    census = census_of(pages[:cut], pages[cut:], config=config)
    whole = ingest(pages, config, census)
    accepted = Counter(
        (row["page_url"], i["url"]) for t in (whole.train, whole.held_out) for row in t.to_pylist() for i in row["images"]
    )
    refused = Counter((row["page_url"], row["url"]) for row in whole.quarantine.to_pylist() if row["url"])
    assert accepted + refused == Counter((page.page_url, image.url) for page in pages for image in page.images)
    stats = whole.stats
    assert stats["num_pages"] == len(pages)
    assert stats["num_images_in"] == stats["num_train_images"] + stats["num_held_out_images"] + stats["num_quarantined"]
    assert {k.removeprefix("num_quarantined_"): v for k, v in stats.items() if k.startswith("num_quarantined_")} == reasons(whole)
    assert not set(held(whole.train)) & set(held(whole.held_out))
    assert all(len(row["images"]) >= min_images for row in whole.train.to_pylist())
    parts = [ingest(part, config, census) for part in (pages[:cut], pages[cut:])]
    for name in ("train", "held_out", "quarantine"):
        assert pa.concat_tables([getattr(part, name) for part in parts]) == getattr(whole, name)
    assert parts[0].stats + parts[1].stats == stats


def test_the_split_depends_on_the_seed_and_the_id_alone_and_keeps_its_share():
    for split_by in ("image", "page"):
        sides = {}
        for seed in (0, 1):
            config = settings_for(split_by=split_by, held_out_share=0.15, seed=seed)
            sides[seed] = [is_held_out(Page(f"p{i}", ()), f"{i:032x}", config) for i in range(4000)]
            assert abs(np.mean(sides[seed]) - 0.15) < 0.02  # 3.5 standard deviations
        assert sides[0] != sides[1]
        larger = settings_for(split_by=split_by, held_out_share=0.3)
        both = [is_held_out(Page(f"p{i}", ()), f"{i:032x}", larger) for i in range(4000)]
        assert all(now for before, now in zip(sides[0], both, strict=True) if before)  # a larger share only adds


def test_split_by_image_sends_a_picture_to_one_side_on_every_page():
    config = settings_for(split_by="image", held_out_share=0.5)
    name = image_id(noise(3))
    assert len({is_held_out(Page(f"p{i}", ()), name, config) for i in range(50)}) == 1


def test_a_held_out_page_does_not_show_what_a_training_page_shows(pool):
    config = settings_for(held_out_share=0.5)
    pages = [Page(f"p{i}", (pool["good0"], pool[f"good{i + 1}"])) for i in range(5)]
    sides = [is_held_out(page, "", config) for page in pages]
    assert len(set(sides)) == 2
    result = ingest(pages, config, census_of(pages, config=config))
    assert reasons(result) == {"in_training": sum(sides)}
    assert held(result.held_out) == [image_id(noise(i + 1)) for i in range(5) if sides[i]]


def test_quarantine_texts_are_cut_and_always_utf8():
    page = Page("p\udce9", (ImageRef("x" * 10_000, "", Reason.BAD_URL, "odd \ud800"),))
    (row,) = ingest([page], settings_for()).quarantine.to_pylist()
    assert row["page_url"] == "p\\xe9"
    assert len(row["url"]) == MAX_TEXT
    assert row["detail"] == "odd \\ud800"


def test_a_folder_tree_goes_through_as_a_user_would_run_it(tmp_path):
    for folder in ("cats", "dogs"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            (tmp_path / folder / f"{i}.png").write_bytes(noise(i + 10 * (folder == "dogs")))
    source, read = SOURCES["folder"], ReadConfig()
    result = ingest([page for part in source.parts(tmp_path, read) for page in source.pages(tmp_path, part, read)], settings_for())
    assert [row["page_url"] for row in result.train.to_pylist()] == ["cats", "dogs"]
    assert result.stats["num_train_images"] == 6


def test_of_a_page_over_the_cap_a_sample_is_kept_that_other_pages_do_not_change(pool):
    images = tuple(pool[f"good{i}"] for i in range(6))
    config = settings_for(max_images_per_page=3)
    alone = ingest([Page("p", images)], config)
    (row,) = alone.train.to_pylist()
    kept = [i["url"] for i in row["images"]]
    assert len(kept) == 3
    assert kept == sorted(kept)  # the order of the page
    assert reasons(alone) == {"page_cap": 3}
    later = ingest([Page("q", images), Page("p", images)], config).train.to_pylist()[1]
    assert [i["url"] for i in later["images"]] == kept
    others = [[i["url"] for i in r["images"]] for r in ingest([Page(f"p{n}", images) for n in range(9)], config).train.to_pylist()]
    assert len(set(map(tuple, others))) > 1  # another page, another sample


def test_pieces_of_a_page_are_episodes_of_their_own_on_one_side():
    config = settings_for(held_out_share=0.5)
    for url in ("a", "b", "c", "d"):
        assert len({is_held_out(Page(url, (), piece=piece), "", config) for piece in ("", "00001", "00002")}) == 1
    assert len({episode_id("lsun", "church", piece) for piece in ("", "00000", "00001")}) == 3


def test_pictures_of_a_page_that_opts_out_are_refused(pool):
    page = Page("p", (pool["good0"], pool["good1"]), opt_out=("noindex", "noai"))
    assert reasons(ingest([page], settings_for())) == {"opted_out": 2}
    indexed = Page("p", (pool["good0"], pool["good1"]), opt_out=("noindex",))  # says nothing of training
    assert ingest([indexed], settings_for()).stats["num_train_images"] == 2


def test_bytes_at_hand_and_slices_of_a_file_are_read_like_files(pool, tmp_path):
    packed = tmp_path / "packed"
    packed.write_bytes(b"xx" + noise(0) + noise(1) + noise(2))
    lengths = [len(noise(i)) for i in range(3)]
    slices = [
        ImageRef("0", str(packed), offset=2, length=lengths[0]),
        ImageRef("1", data=noise(1)),
        ImageRef("2", packed.as_uri(), offset=2 + lengths[0] + lengths[1]),  # to the end
    ]
    (row,) = ingest([Page("p", tuple(slices))], settings_for()).train.to_pylist()
    assert [i["image_id"] for i in row["images"]] == [image_id(noise(i)) for i in range(3)]


def test_a_damaged_file_of_pages_counts_for_nothing_in_the_census(pool):
    def broken():
        yield Page("p", (pool["good0"],))
        raise DamagedFile("crawl.warc", "ends in the middle of a record")

    assert count_pictures(broken(), settings_for()).num_pages == 0
    with pytest.raises(DamagedFile):
        list(ingest_pages(broken(), None, settings_for(), lambda data: normalise(data, TINY)))


def test_broken_pictures_are_counted_apart_from_unwanted_ones(pool):
    page = Page("p", tuple(pool[name] for name in ("good0", "good1", "copy0", "small", "remote", "cut", "empty", "html", "gone")))
    assert num_damaged(ingest([page], settings_for()).stats) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [("held_out_share", 1.01), ("min_images", 0), ("near_duplicate_bits", 65), ("split_by", "site"), ("source", "gopher")],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        from_dict(IngestConfig, {field: value})


def test_the_default_settings_survive_a_round_trip():
    assert from_dict(IngestConfig, to_dict(IngestConfig())) == IngestConfig()

"""Pages in, episodes and quarantine out: nothing is lost, nothing is on both sides, and the cut into calls does not matter."""

import hashlib
import io
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from semantica.config import from_dict, to_dict
from semantica.data.schemas import EPISODES, QUARANTINE
from semantica.episodes.clean import image_id
from semantica.episodes.images import normalise
from semantica.episodes.ingest import IngestConfig, count_pictures, episode_id, ingest_pages, num_damaged
from semantica.episodes.pages import ImageRef, Page, ReadConfig
from semantica.episodes.quarantine import MAX_TEXT, DamagedFile, Reason
from semantica.episodes.sources import SOURCES
from semantica.errors import ConfigError
from tests.episodes.ingesting import TINY, census_of, held, ingest, noise, reasons, settings_for


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

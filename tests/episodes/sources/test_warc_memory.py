"""What the WARC source holds in memory: pictures up to a size, within a window, and no more for a longer archive."""

import gzip
import logging
import tracemalloc

from semantica.episodes.pages import ReadConfig
from semantica.episodes.quarantine import Reason
from semantica.episodes.sources.warc import WarcSource
from tests.episodes.sources.warc_files import PNG, Archive, pages_of, pictures, read


def test_pictures_that_are_too_large_are_not_kept(tmp_path):
    archive = Archive().page("http://s.org/", "large.png", "bomb.png", "good.png")
    archive.picture("http://s.org/large.png", bytes(300_000)).picture("http://s.org/good.png", bytes(200_000))
    archive.response("http://s.org/bomb.png", "image/png", gzip.compress(bytes(50_000_000)), ("Content-Encoding", "gzip"))
    (page,) = pages_of(tmp_path, archive, max_image_bytes=200_000)
    assert [data for _, data in pictures(page)] == [Reason.TOO_MANY_BYTES, Reason.TOO_MANY_BYTES, bytes(200_000)]
    assert page.images[0].detail == "expected at most 200000 bytes, got more"


def test_a_picture_that_its_record_says_is_too_large_is_passed_over_unread(tmp_path):
    archive = Archive(False).page("http://s.org/", "large.png").picture("http://s.org/large.png", bytes(40 << 20))
    (tmp_path / "a.warc").write_bytes(archive.data)
    tracemalloc.start()
    try:
        (page,) = read(tmp_path, max_image_bytes=1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pictures(page) == [("http://s.org/large.png", Reason.TOO_MANY_BYTES)]
    assert peak < 4 << 20


# --- the window ---


def numbered(number):
    return PNG + number.to_bytes(4) * (25_000)


def test_within_the_window_order_does_not_matter_and_beyond_it_pictures_are_not_found(tmp_path, caplog):
    near = Archive().picture("http://s.org/a.png", PNG)
    for number in range(5):
        near.picture(f"http://s.org/{number}.png", numbered(number))
    near.page("http://s.org/", "a.png", "b.png")
    for number in range(5):
        near.picture(f"http://s.org/{number}.png", numbered(number))
    near.picture("http://s.org/b.png", PNG)
    far = Archive().picture("http://s.org/a.png", PNG)
    for number in range(15):
        far.picture(f"http://s.org/{number}.png", numbered(number))
    far.page("http://s.org/", "a.png", "b.png", "14.png")
    for number in range(15, 30):
        far.picture(f"http://s.org/{number}.png", numbered(number))
    far.picture("http://s.org/b.png", PNG)
    (page,) = pages_of(tmp_path, near, join_window_mb=1)
    assert [data for _, data in pictures(page)] == [PNG, PNG]
    with caplog.at_level(logging.INFO):
        (page,) = pages_of(tmp_path, far, join_window_mb=1)
    assert [data for _, data in pictures(page)] == [Reason.NOT_IN_ARCHIVE, Reason.NOT_IN_ARCHIVE, numbered(14)]
    assert "1 pages, 1 pictures found, 2 not found within 1 MB" in caplog.text
    assert pictures(pages_of(tmp_path, far, join_window_mb=512)[0])[:2] == [
        ("http://s.org/a.png", PNG),
        ("http://s.org/b.png", PNG),
    ]


def test_a_picture_that_pages_keep_asking_for_stays_in_the_window(tmp_path):
    archive = Archive().picture("http://s.org/logo.png", PNG).redirect("http://s.org/old.png", "logo.png")
    for number in range(40):
        archive.page(f"http://s.org/{number}", "old.png").picture(f"http://s.org/{number}.png", numbered(number))
    pages = pages_of(tmp_path, archive, join_window_mb=1)
    assert [page.page_url for page in pages] == [f"http://s.org/{number}" for number in range(40)]
    assert {data for page in pages for _, data in pictures(page)} == {PNG}


def test_a_picture_larger_than_the_window_is_found_by_the_pages_before_it(tmp_path):
    large = PNG + bytes(2 << 20)
    archive = Archive().page("http://s.org/1", "a.png").picture("http://s.org/a.png", large).page("http://s.org/2", "a.png")
    first, second = pages_of(tmp_path, archive, join_window_mb=1)
    assert pictures(first) == [("http://s.org/a.png", large)]
    assert pictures(second) == [("http://s.org/a.png", Reason.NOT_IN_ARCHIVE)]


def test_memory_is_bounded_by_the_window_not_by_the_archive(tmp_path):
    archive = Archive()
    for number in range(600):
        archive.page(f"http://s.org/{number}", f"{number}.png").picture(f"http://s.org/{number}.png", numbered(number))
    (tmp_path / "a.warc.gz").write_bytes(archive.data)
    source, options = WarcSource(), ReadConfig(join_window_mb=4)
    (part,) = source.parts(tmp_path, options)
    tracemalloc.start()
    try:
        found = sum(image.data is not None for page in source.pages(tmp_path, part, options) for image in page.images)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == 600
    assert 600 * len(numbered(0)) > 60_000_000
    assert peak < 8 << 20

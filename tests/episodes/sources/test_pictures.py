"""Pictures without pages: one folder, or rows of Parquet; every picture once, whatever the cuts."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semantica.episodes.pages import ReadConfig
from semantica.episodes.quarantine import DamagedFile, Reason
from semantica.episodes.sources import tables
from semantica.episodes.sources.pictures import PicturesSource
from semantica.errors import DataError

SOURCE = PicturesSource()


def pages(root, **settings):
    config = ReadConfig(**({"images_per_label": 3} | settings))
    return [page for part in SOURCE.parts(root, config) for page in SOURCE.pages(root, part, config)]


def write(path, images, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, **columns}), path, row_group_size=4)
    return path


def contents(found):
    return sorted(image.data for page in found for image in page.images)


def test_a_flat_folder_is_chunks_without_a_label(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    (tmp_path / "readme.txt").write_text("no picture")
    found = pages(tmp_path)
    assert [page.page_url for page in found] == ["."] * 3
    assert sorted(image.url for page in found for image in page.images) == [f"{n}.png" for n in range(8)]
    assert len({page.piece for page in found}) == 3


def test_rows_of_parquet_keep_their_label_whether_it_is_text_or_a_number(tmp_path):
    images = [b"%d" % n for n in range(11)]
    labels = ["a", "b"] * 5 + [None]
    found = pages(write(tmp_path / "text.parquet", images, label=labels))
    assert contents(found) == sorted(images)
    assert {(image.data, page.page_url) for page in found for image in page.images} == {
        (data, label or ".") for data, label in zip(images, labels, strict=True)
    }
    assert all(len(page.images) <= 3 for page in found)
    assert {page.page_url for page in pages(write(tmp_path / "n.parquet", images, label=[n % 2 for n in range(11)]))} == {"0", "1"}
    assert {page.page_url for page in pages(write(tmp_path / "none.parquet", images))} == {"."}


def test_a_cut_into_parts_loses_no_row_and_repeats_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MIN_CUT_BYTES", 0)
    images = [b"%d" % n for n in range(30)]
    for name, half in (("a", images[:17]), ("b", images[17:])):
        write(tmp_path / f"{name}.parquet", half, label=["same"] * len(half))
    found = pages(tmp_path, pages_per_part=4)
    assert contents(found) == sorted(images)
    assert len({(page.page_url, page.piece) for page in found}) == len(found)


def test_the_struct_of_hugging_face_is_read_too(tmp_path):
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": b"one", "path": "a.png"}, {"bytes": None, "path": "b.png"}, None], struct)
    (page,) = pages(write(tmp_path / "a.parquet", cells))
    assert [(image.data, image.problem) for image in page.images] == [(b"one", ""), *[(None, Reason.EMPTY_FILE)] * 2]


def test_a_cell_of_too_many_bytes_is_kept_with_its_problem(tmp_path):
    (page,) = pages(write(tmp_path / "a.parquet", [b"x" * 9, b"y"]), max_image_bytes=5)
    assert [image.problem for image in page.images] == [Reason.TOO_MANY_BYTES, ""]


def test_what_holds_no_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected pictures \(.*\) or \.parquet files directly in it, found nothing"):
        pages(tmp_path)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DamagedFile, match="expected a column image or bytes with pictures, got text"):
        pages(tmp_path)
    pq.write_table(pa.table({"image": ["http://i.org/1.png"]}), tmp_path / "a.parquet")
    with pytest.raises(DamagedFile, match="expected the column image to be bytes"):
        pages(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(DamagedFile, match=r"a\.parquet"):
        pages(tmp_path)

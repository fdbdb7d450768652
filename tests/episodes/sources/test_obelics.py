import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from semantica.episodes.pages import ImageRef, Page, ReadConfig, Source
from semantica.episodes.quarantine import DamagedFile, Reason
from semantica.episodes.sources import tables
from semantica.episodes.sources.obelics import ObelicsSource
from semantica.errors import DataError

# As Hugging Face's `datasets` writes the table of HuggingFaceM4/OBELICS.
SCHEMA = pa.schema(
    {"images": pa.list_(pa.string()), "metadata": pa.string(), "general_metadata": pa.string(), "texts": pa.list_(pa.string())}
)
SETTINGS = ReadConfig()


def row(images, general, metadata=()):
    if not isinstance(general, str):
        general = json.dumps(general)
    texts = [None if image else "words" for image in images or ()]
    return {"images": images, "metadata": json.dumps(list(metadata)), "general_metadata": general, "texts": texts}


def written(path, rows, schema=SCHEMA, **options):
    with path.open("wb") as stream:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), stream, **options)
    return path


def read(root, settings=SETTINGS):
    source = ObelicsSource()
    assert isinstance(source, Source)
    return [page for part in source.parts(root, settings) for page in source.pages(root, part, settings)]


def remote(url):
    return ImageRef(url, problem=Reason.REMOTE_URL, detail="not fetched")


@pytest.mark.parametrize("remotely", [False, True])
def test_rows_become_pages_wherever_the_files_lie(tmp_path, remotely):
    root = UPath("memory://obelics") if remotely else tmp_path
    (root / "data").mkdir(parents=True, exist_ok=True)
    general = {"url": "https://site.org/räd", "warc_filename": "crawl.warc.gz", "warc_record_offset": 1, "warc_record_length": 2}
    rows = [
        row(["https://i.org/1.jpg", None, "http://i.org/2.jpg", None], general),
        row([None], {"url": "https://site.org/text"}),
        row(["https://i.org/1.jpg", "https://i.org/1.jpg"], {"url": "https://site.org/b"}),
    ]
    written(root / "data" / "train-00001-of-00002.parquet", rows[2:])
    written(root / "data" / "train-00000-of-00002.parquet", rows[:2])
    first, second = "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"
    expected = [
        Page("https://site.org/räd", (remote("https://i.org/1.jpg"), remote("http://i.org/2.jpg")), piece=f"{first}#0"),
        Page("https://site.org/text", (), piece=f"{first}#1"),
        Page("https://site.org/b", (remote("https://i.org/1.jpg"),), piece=f"{second}#0"),
    ]
    assert read(root) == expected
    assert read(root) == expected
    assert [page.piece for page in read(root / first)] == ["train-00000-of-00002.parquet#0", "train-00000-of-00002.parquet#1"]


def test_without_general_metadata_the_page_is_the_one_its_pictures_name_or_none(tmp_path):
    named = [None, {"document_url": "https://site.org/a", "src": "https://i.org/1.jpg"}]
    written(tmp_path / "a.parquet", [row(["http://i.org/1.jpg"], [], named), row(["http://i.org/2.jpg"], []), row(["x"], "null")])
    pages = read(tmp_path)
    assert [(page.page_url, page.has_url) for page in pages] == [
        ("https://site.org/a", True),
        ("a.parquet#1", False),
        ("a.parquet#2", False),
    ]


def test_what_is_no_http_url_says_so(tmp_path):
    urls = ["data:image/png;base64," + "A" * 1000, "ftp://i.org/1.jpg", "1.jpg", "http://", "http://[", " https://i.org/é b.jpg "]
    written(tmp_path / "a.parquet", [row(urls, {"url": "http://s.org"})])
    (page,) = read(tmp_path)
    assert [image.problem for image in page.images] == [Reason.DATA_URL] + 4 * [Reason.BAD_URL] + [Reason.REMOTE_URL]
    assert len(page.images[0].url) == 200
    assert page.images[-1].url == "https://i.org/é b.jpg"


@pytest.mark.parametrize("general", ['{"url": ', "[" * 100_000, '{"url": "http://s.org"} x'])
def test_a_row_whose_json_is_broken_is_one_unreadable_page(tmp_path, general):
    written(tmp_path / "a.parquet", [row(["http://i.org/1.jpg"], general), row(["http://i.org/2.jpg"], {"url": "http://s.org"})])
    bad, good = read(tmp_path)
    assert (bad.page_url, bad.problem, bad.images, bad.has_url) == ("a.parquet#0", Reason.PAGE_UNREADABLE, (), False)
    assert "expected JSON" in bad.detail
    assert good.page_url == "http://s.org"


def test_lone_surrogates_of_json_do_not_reach_a_page(tmp_path):
    written(tmp_path / "a.parquet", [row([], '{"url": "http://s.org/\\ud800"}')])
    (page,) = read(tmp_path)
    assert page.page_url == "http://s.org/\\ud800"


def test_a_text_that_is_not_utf8_is_one_unreadable_page(tmp_path):
    images = pa.array([["http://i.org/1.jpg"]] * 2, pa.list_(pa.string()))
    general = pa.array([b'{"url": "\xff"}', b"[]"], pa.binary()).view(pa.string())
    table = pa.table({"images": images, "metadata": ["[]"] * 2, "general_metadata": general})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [page.problem for page in read(tmp_path)] == [Reason.PAGE_UNREADABLE, ""]


def test_null_cells_are_no_crash(tmp_path):
    null = {"images": None, "metadata": None, "general_metadata": None, "texts": None}
    written(tmp_path / "a.parquet", [null, {**null, "images": ["http://i.org/1.jpg"]}])
    bad, good = read(tmp_path)
    assert bad.problem == Reason.PAGE_UNREADABLE
    assert (good.has_url, good.images) == (False, (remote("http://i.org/1.jpg"),))


@pytest.mark.parametrize("rows_per_group", [100, 256, 1000])
def test_parts_are_runs_of_row_groups_that_hold_every_row_once(tmp_path, monkeypatch, rows_per_group):
    monkeypatch.setattr(tables, "MIN_CUT_BYTES", 1)
    rows = [row([f"http://i.org/{number}.jpg"], {"url": f"http://s.org/{number}"}) for number in range(1000)]
    written(tmp_path / "a.parquet", rows, row_group_size=rows_per_group)
    source = ObelicsSource()
    parts = source.parts(tmp_path, SETTINGS)
    sizes = [len(list(source.pages(tmp_path, part, SETTINGS))) for part in parts]
    assert sizes == {100: [300, 300, 300, 100], 256: [256, 256, 256, 232], 1000: [1000]}[rows_per_group]
    pages = read(tmp_path)
    assert [page.page_url for page in pages] == [f"http://s.org/{number}" for number in range(1000)]
    assert [page.piece for page in pages] == [f"a.parquet#{number}" for number in range(1000)]
    assert {part.fingerprint for part in parts} == {str((tmp_path / "a.parquet").stat().st_size)}


def test_pictures_that_lie_in_the_table_come_with_it(tmp_path):
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = SCHEMA.set(0, pa.field("images", pa.list_(struct)))
    pictures = [
        {"bytes": b"one", "path": "one.jpg"},
        None,
        {"bytes": b"two", "path": None},
        {"bytes": None, "path": "http://i.org/3"},
    ]
    pictures.append({"bytes": b"x" * 11, "path": "large.jpg"})
    written(tmp_path / "a.parquet", [row(pictures, {"url": "http://s.org"})], schema)
    (page,) = read(tmp_path, ReadConfig(max_image_bytes=10))
    assert page.images == (
        ImageRef("one.jpg", data=b"one"),
        ImageRef("a.parquet#0/2", data=b"two"),
        remote("http://i.org/3"),
        ImageRef("large.jpg", problem=Reason.TOO_MANY_BYTES, detail="expected at most 10 bytes, got 11"),
    )


@pytest.mark.parametrize("cut", [0, 3, 100, -1, -9])
def test_a_truncated_file_is_one_damaged_file(tmp_path, monkeypatch, cut):
    monkeypatch.setattr(tables, "MIN_CUT_BYTES", 1)
    path = written(tmp_path / "a.parquet", [row(["http://i.org/1.jpg"], {"url": "http://s.org"})])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedFile, match=r"a\.parquet"):
        read(tmp_path)


def test_a_file_whose_pages_are_damaged_is_a_damaged_file(tmp_path):
    rows = [row([f"http://i.org/{number}.jpg"], {"url": f"http://s.org/{number}"}) for number in range(3000)]
    path = written(tmp_path / "a.parquet", rows, compression="zstd")
    data = bytearray(path.read_bytes())
    data[200 : len(data) // 2] = bytes(len(data) // 2 - 200)
    path.write_bytes(data)
    with pytest.raises(DamagedFile):
        read(tmp_path)


def test_another_table_is_a_damaged_file_that_names_the_columns(tmp_path):
    pq.write_table(pa.table({"url": ["http://i.org"]}), tmp_path / "a.parquet")
    with pytest.raises(DamagedFile, match="expected the columns images, metadata, general_metadata, got url"):
        read(tmp_path)
    pq.write_table(pa.table({"images": ["http://i.org"], "metadata": ["[]"], "general_metadata": ["[]"]}), tmp_path / "a.parquet")
    with pytest.raises(DamagedFile, match="expected the column images to be a list of URLs, got string"):
        read(tmp_path)


def test_a_column_whose_name_is_not_utf8_is_a_damaged_file(tmp_path):
    path = written(tmp_path / "a.parquet", [row([], {"url": "http://s.org"})], store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"texts", b"te\xffts"))
    with pytest.raises(DamagedFile, match="utf-8"):
        read(tmp_path)


def test_an_empty_table_has_no_pages_and_an_empty_folder_is_refused(tmp_path):
    written(tmp_path / "a.parquet", [])
    assert read(tmp_path) == []
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(DataError, match=r"no OBELICS files under .*\.parquet"):
        read(tmp_path)
    with pytest.raises(DataError, match="no folder or file"):
        read(tmp_path / "missing")


def test_symlinks_are_followed_only_inside_the_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    written(outside / "b.parquet", [row([], {"url": "http://outside.org"})])
    (root / "link.parquet").symlink_to(outside / "b.parquet")
    (root / "folder").symlink_to(outside)
    with pytest.raises(DataError, match="1 symlinks that leave it are not followed"):
        read(root)
    written(root / "a.parquet", [row([], {"url": "http://s.org"})])
    (root / "same.parquet").symlink_to(root / "a.parquet")
    assert [page.piece for page in read(root)] == ["a.parquet#0", "same.parquet#0"]


def test_a_failing_disk_is_not_a_damaged_file(tmp_path, monkeypatch):
    from semantica.episodes.sources import files

    written(tmp_path / "a.parquet", [row([], {"url": "http://s.org"})])

    class Failing(files._Watched):
        def readinto(self, buffer, /):
            self.failure = ConnectionError("the network is gone")
            raise self.failure

    monkeypatch.setattr(files, "_Watched", Failing)
    with pytest.raises(ConnectionError, match="the network is gone"):
        read(tmp_path)

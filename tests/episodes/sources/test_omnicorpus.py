import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from semantica.episodes.pages import ImageRef, Page, ReadConfig, Source
from semantica.episodes.quarantine import DamagedFile, Reason
from semantica.episodes.sources.omnicorpus import OmniCorpusSource

# The features that the data set card of OpenGVLab/OmniCorpus-CC lists.
GENERAL = pa.struct(
    {
        "domain": pa.list_(pa.string()),
        "fluency_prob": pa.float64(),
        "id": pa.string(),
        "non_advertisement_prob": pa.float64(),
        "politics_prob": pa.float64(),
        "porn_prob": pa.float64(),
        "toxic_prob": pa.float64(),
        "url": pa.string(),
    }
)
PICTURE = pa.struct(
    {
        "aesthetic_prob": pa.float64(),
        "bytes": pa.int64(),
        "d_hash": pa.string(),
        "d_hash_dup_count": pa.int64(),
        "height": pa.int64(),
        "img_url_sha": pa.string(),
        "p_hash": pa.string(),
        "p_hash_dup_count": pa.int64(),
        "unsafe_prob": pa.float64(),
        "width": pa.int64(),
    }
)
SCHEMA = pa.schema(
    {
        "general_metadata": GENERAL,
        "images": pa.list_(pa.string()),
        "texts": pa.list_(pa.string()),
        "metadata": pa.list_(PICTURE),
    }
)


def row(images, url):
    metadata = [{"bytes": 5, "width": 3, "height": 2, "img_url_sha": "0" * 64} if image else None for image in images or ()]
    texts = [None if image else "words" for image in images or ()]
    general = {"url": url, "id": "7", "domain": ["a", "b"], "fluency_prob": 0.5}
    return {"general_metadata": general, "images": images, "texts": texts, "metadata": metadata}


def written(path, rows):
    with path.open("wb") as stream:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), stream)
    return path


def read(root):
    source, settings = OmniCorpusSource(), ReadConfig()
    assert isinstance(source, Source)
    return [page for part in source.parts(root, settings) for page in source.pages(root, part, settings)]


@pytest.mark.parametrize("remotely", [False, True])
def test_rows_become_pages_wherever_the_files_lie(tmp_path, remotely):
    root = UPath("memory://omnicorpus") if remotely else tmp_path
    (root / "CC-MAIN-2016-26").mkdir(parents=True, exist_ok=True)
    rows = [row(["http://i.org/ü.jpg", None], "http://s.org/a"), row([None], "http://s.org/b"), row(["http://i.org/2"], None)]
    written(root / "CC-MAIN-2016-26" / "shard_0.parquet", rows)
    name = "CC-MAIN-2016-26/shard_0.parquet"
    picture = ImageRef("http://i.org/ü.jpg", problem=Reason.REMOTE_URL, detail="not fetched")
    second = ImageRef("http://i.org/2", problem=Reason.REMOTE_URL, detail="not fetched")
    expected = [
        Page("http://s.org/a", (picture,), piece=f"{name}#0"),
        Page("http://s.org/b", (), piece=f"{name}#1"),
        Page(f"{name}#2", (second,), piece=f"{name}#2", has_url=False),
    ]
    assert read(root) == expected
    assert read(root) == expected


def test_null_cells_are_no_crash(tmp_path):
    null = {"general_metadata": None, "images": None, "texts": None, "metadata": None}
    written(tmp_path / "a.parquet", [null, {**null, "images": ["http://i.org/1"]}])
    bad, good = read(tmp_path)
    assert (bad.problem, bad.page_url) == (Reason.PAGE_UNREADABLE, "a.parquet#0")
    assert (good.has_url, len(good.images)) == (False, 1)


def test_a_truncated_file_and_a_table_of_obelics_are_damaged_files(tmp_path):
    path = written(tmp_path / "a.parquet", [row(["http://i.org/1"], "http://s.org")])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DamagedFile):
        read(tmp_path)
    pq.write_table(pa.table({"images": [["http://i.org"]], "general_metadata": ['{"url": "http://s.org"}']}), path)
    with pytest.raises(DamagedFile, match="expected the column general_metadata to be a struct with the field url, got string"):
        read(tmp_path)


def test_an_empty_table_has_no_pages(tmp_path):
    written(tmp_path / "a.parquet", [])
    assert read(tmp_path) == []

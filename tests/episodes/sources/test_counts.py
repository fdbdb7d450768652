"""That no source drops a reference unseen: what a crawl names, counted here, is what its pages hold and what is named twice."""

import gzip
import io
import json
import tarfile

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from semantica.episodes.pages import ImageRef, ReadConfig
from semantica.episodes.quarantine import Reason
from semantica.episodes.sources import SOURCES
from semantica.episodes.sources.remote import MAX_SHOWN, remote_image, unique_images

INLINE = "data:image/png;base64," + "A" * 2 * MAX_SHOWN  # what begins so differs only behind the cut
# Every kind of name a page may give a picture, each unlike the others, blank ones too; and how often each is named.
DIFFERENT = ["http://i.org/1.png", "http://i.org/1.png?v=2", "https://i.org/2.png", INLINE + "B", INLINE + "C", INLINE + "D"]
DIFFERENT += ["data:,a", "data:,b", "ftp://i.org/a", "ftp://i.org/b", "http://[", "x.png", "y.png"]
BLANK = ["", "  ", ""]
TWICE = ["http://i.org/1.png", INLINE + "B", "data:,a", "ftp://i.org/a", "x.png"]
NAMED = [*DIFFERENT, *BLANK, *TWICE]


def pages_of(name, root):
    source, settings = SOURCES[name], ReadConfig(images_per_label=4)
    return [page for part in source.parts(root, settings) for page in source.pages(root, part, settings)]


def images_of(name, root):
    pages = pages_of(name, root)
    assert not any(page.problem for page in pages)
    assert len({(page.page_url, page.piece) for page in pages}) == len(pages)
    return [image for page in pages for image in page.images]


def write_mmc4(root):
    line = {"url": "http://s.org", "image_info": [{"raw_url": url} for url in NAMED]}
    (root / "a.jsonl").write_text(json.dumps(line))


def write_wit(root):
    (root / "a.tsv").write_text("page_url\timage_url\n" + "".join(f"http://s.org\t{url}\n" for url in NAMED))


def write_obelics(root):
    table = {"images": [[*NAMED, None]], "metadata": ["[]"], "general_metadata": ['{"url": "http://s.org"}']}
    pq.write_table(pa.table(table), root / "a.parquet")


def write_omnicorpus(root):
    table = {"images": [[None, *NAMED]], "general_metadata": [{"url": "http://s.org"}]}
    pq.write_table(pa.table(table), root / "a.parquet")


@pytest.mark.parametrize(
    ("name", "write"), [("mmc4", write_mmc4), ("wit", write_wit), ("obelics", write_obelics), ("omnicorpus", write_omnicorpus)]
)
def test_a_table_of_urls_gives_each_url_once_and_every_blank_one(tmp_path, name, write):
    write(tmp_path)
    images = images_of(name, tmp_path)
    assert len(images) == len(NAMED) - len(TWICE)
    assert [image.url for image in images] == [url.strip()[:MAX_SHOWN] for url in (*DIFFERENT, *BLANK)]


@pytest.mark.parametrize("name", ["html", "warc"])
def test_a_page_gives_each_url_once_and_elements_without_one_show_nothing(tmp_path, name):
    html = "".join(f'<img src="{url}">' for url in NAMED)
    if name == "warc":
        with (tmp_path / "a.warc").open("wb") as stream:
            writer = WARCWriter(stream, gzip=False)
            http = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
            page = writer.create_warc_record("http://s.org/", "response", payload=io.BytesIO(html.encode()), http_headers=http)
            writer.write_record(page)
    else:
        (tmp_path / "a.html").write_text(html)
    images = images_of(name, tmp_path)
    assert len(images) == len(NAMED) - len(TWICE) - len(BLANK) == len(DIFFERENT)
    assert sum(image.problem == Reason.DATA_URL for image in images) == sum(url.startswith("data:") for url in DIFFERENT)


def test_a_name_that_is_missing_in_one_folder_is_not_the_file_of_that_name_in_another(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "sub" / "i.html").write_text('<img src="../a.png"><img src="a.png">')
    assert [(image.url, image.problem) for image in images_of("html", tmp_path)] == [("a.png", ""), ("a.png", Reason.MISSING_FILE)]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_pictures_of_one_url_in_a_tar_are_all_kept(tmp_path, suffix):
    samples = [("http://i.org/1", b"one"), ("http://i.org/1", b"two"), ("http://i.org/1", b"one"), ("", b"3"), ("", b"4")]
    samples += [("http://i.org/1", None), ("http://i.org/2", None), ("http://i.org/2", None)]  # downloads that failed
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number, (url, content) in enumerate(samples):
            facts = {"url": url, "page_url": "http://s.org", "status": f"failed {number}"}
            for extension, data in (("jpg", content), ("json", json.dumps(facts).encode())):
                if data is not None:
                    member = tarfile.TarInfo(f"{number}.{extension}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(stream.getvalue()) if suffix == "tar.gz" else stream.getvalue())
    images = images_of("webdataset", tmp_path)
    assert len(images) == len(samples) - 1
    assert sum(image.problem == Reason.REMOTE_URL for image in images) == 2
    if suffix == "tar.gz":
        assert [image.data for image in images if not image.problem] == [b"one", b"two", b"one", b"3", b"4"]
    else:
        assert len({image.offset for image in images if not image.problem}) == 5


@pytest.mark.parametrize("name", ["obelics", "omnicorpus"])
def test_pictures_of_one_name_in_a_table_are_all_kept(tmp_path, name):
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pictures = [{"bytes": data, "path": "image.jpg"} for data in (b"one", b"two", b"one", b"x" * 100, b"y" * 100)]
    pictures += [{"bytes": None, "path": "http://i.org/1"}] * 2 + [{"bytes": None, "path": ""}] * 2 + [None]
    general = pa.array(['{"url": "http://s.org"}'] if name == "obelics" else [{"url": "http://s.org"}])
    table = {"images": pa.array([pictures], pa.list_(struct)), "metadata": pa.array(["[]"]), "general_metadata": general}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    source, settings = SOURCES[name], ReadConfig(max_image_bytes=50)
    (page,) = (page for part in source.parts(tmp_path, settings) for page in source.pages(tmp_path, part, settings))
    assert [image.problem for image in page.images] == [
        "", "", "", *[Reason.TOO_MANY_BYTES] * 2, Reason.REMOTE_URL, *[Reason.BAD_URL] * 2,
    ]  # fmt: skip


def test_every_picture_of_a_folder_is_a_reference(tmp_path):
    for number in range(9):
        (tmp_path / f"c{number % 3}").mkdir(exist_ok=True)
        (tmp_path / f"c{number % 3}" / f"{number}.png").write_bytes(b"the same")
    for name in ("folder", "imagefolder"):
        assert len(images_of(name, tmp_path)) == len(list(tmp_path.rglob("*.png"))) == 9
    assert sum(len(images_of("pictures", tmp_path / f"c{number}")) for number in range(3)) == 9
    (tmp_path / "SUN397" / "a").mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"c{number}").rename(tmp_path / "SUN397" / "a" / f"c{number}")
    (tmp_path / "SUN397" / "ClassName.txt").write_text("/a/c0\n/a/c1\n/a/c2\n")
    assert len(images_of("sun397", tmp_path)) == 9


def test_every_value_of_lsun_is_a_reference(tmp_path):
    with lmdb.open(str(tmp_path / "tower_val_lmdb"), map_size=1 << 20) as environment, environment.begin(write=True) as writer:
        for number in range(9):
            writer.put(b"%d" % number, b"" if number == 5 else b"the same")
    assert len(images_of("lsun", tmp_path)) == 9


def test_every_source_is_counted_here():
    counted = {"mmc4", "wit", "obelics", "omnicorpus", "html", "warc", "webdataset", "folder", "imagefolder", "sun397", "lsun"}
    counted |= {"pictures"}
    assert SOURCES.keys() - counted == {"imagenet-train", "imagenet-val"}  # counted in test_imagenet, in each of their shapes


def test_only_references_that_are_a_url_and_nothing_more_are_merged():
    named, failed = remote_image("http://i.org/1"), remote_image("http://i.org/1", "not fetched; 404")
    gone = ImageRef("http://i.org/1", problem=Reason.NOT_IN_ARCHIVE)
    there = [ImageRef("http://i.org/1", "a.tar", offset=512), ImageRef("http://i.org/1", data=b"x"), ImageRef("u", data=b"x")]
    large = ImageRef("http://i.org/1", problem=Reason.TOO_MANY_BYTES)
    blank = remote_image("")
    images = (named, failed, gone, *there, *there, large, large, blank, blank)
    assert unique_images(images) == (named, *there, *there, large, large, blank, blank)


def test_the_name_of_a_data_url_is_cut_and_its_digest_tells_it_apart():
    one, other, again, short = (remote_image(url) for url in (INLINE + "B", INLINE + "C", INLINE + "B", "data:,x"))
    assert one.url == other.url == INLINE[:MAX_SHOWN]
    assert one == again
    assert one.detail != other.detail
    assert f"{len(INLINE) + 1} characters" in one.detail
    assert short == ImageRef("data:,x", problem=Reason.DATA_URL, detail="inline data")

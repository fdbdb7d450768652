"""Versions, by the metadata of what is installed here and of packages that are written for a test."""

import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from semantica.doctor.versions import (
    check_versions,
    installed_version,
    own_bounds,
    package_version,
    python_version,
    read_pins,
    requirement,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """package(name, version, *requires) installs a package that is nothing but its metadata."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, version, *requires):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in requires)]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")

    return write


def test_what_the_tests_run_with_is_what_the_constraints_say():
    found = {finding.name: finding for finding in check_versions()}
    assert set(found) >= {"versions.python", "versions.ray", "versions.torch", "versions.torchvision", "versions.mlflow"}
    assert found["versions.pyarrow"].found.startswith(installed_version("pyarrow"))
    assert all(
        finding.status == "OK"
        for name, finding in found.items()
        if finding.found == read_pins(ROOT / "constraints.txt").get(name[9:])
    )


def test_bounds_are_those_of_the_project_and_pins_those_of_the_constraints():
    assert own_bounds()["pyarrow"] == SpecifierSet(">=22")
    assert own_bounds()["ray"] == SpecifierSet(">=2.60")  # with its extras
    assert "pytest" not in own_bounds()  # of an extra
    assert read_pins(ROOT / "constraints.txt")["ray"] == "2.60.0"
    assert read_pins(ROOT / "constraints.txt")["torch-fidelity"] == "0.4.0"
    assert read_pins(ROOT / "no such file") == {}


def test_a_missing_package_fails_unless_it_is_for_tpus_alone():
    assert package_version("no-such-package-at-all", SpecifierSet(), None).status == "FAIL"
    assert package_version("no-such-package-at-all", SpecifierSet(), None, optional={"no-such-package-at-all"}).status == "OK"


def test_a_package_below_the_bound_fails(package):
    package("doctor-old", "1.2.0")
    finding = package_version("doctor-old", SpecifierSet(">=2"), None)
    assert (finding.status, finding.found) == ("FAIL", "1.2.0, expected >=2")
    assert "doctor-old>=2" in finding.remedy


def test_a_pair_that_does_not_fit_together_fails(package):
    package("doctor-torch", "2.15.0+cu132")
    package("doctor-vision", "0.29.2", "doctor-torch==2.14.0", 'other>=1; extra == "all"')
    finding = package_version("doctor-torch", SpecifierSet(), None, others=["doctor-vision"])
    assert (finding.status, finding.found) == ("FAIL", "2.15.0+cu132, but doctor-vision 0.29.2 wants ==2.14.0")
    assert requirement("doctor-vision", "other") is None


def test_a_pair_that_fits_passes_also_with_the_name_of_its_build(package):
    package("doctor-torch", "2.15.0+cu132")
    package("doctor-vision", "0.29.2", "doctor_torch==2.15.0")
    assert package_version("doctor-torch", SpecifierSet(">=2.9"), "2.15.0", others=["doctor-vision"]).status == "OK"


def test_a_version_that_was_not_tested_is_a_warning(package):
    package("doctor-new", "3.0.0")
    finding = package_version("doctor-new", SpecifierSet(">=2"), "2.5.0")
    assert (finding.status, finding.found) == ("WARN", "3.0.0, tested with 2.5.0")


@pytest.mark.parametrize(("version", "status"), [("3.10.4", "FAIL"), ("3.11.9", "OK"), ("3.13.1", "WARN"), ("3.14.0", "FAIL")])
def test_python_is_that_of_the_clusters_images(version, status):
    assert python_version(version).status == status


def test_the_tested_python_is_that_of_the_constraints_and_the_images():
    assert "(Python 3.11," in (ROOT / "constraints.txt").read_text()
    assert "-py311" in (ROOT / "cluster.yaml").read_text()
    assert sys.version_info >= (3, 11)

"""Devices, on the machine that the tests have."""

import sys

import pytest
import torch

from semantica.doctor import devices
from semantica.doctor.devices import check_devices, gpus, processors, shared_memory, tpus


def test_every_device_has_a_finding():
    names = [finding.name.partition(":")[0] for finding in check_devices()]
    assert names[:2] == ["devices.cpu", "devices.shm"]
    assert set(names) == {"devices.cpu", "devices.shm", "devices.cuda", "devices.tpu"}


def test_processors_are_those_that_this_process_may_use():
    assert " CPUs, " in processors().found


def test_shared_memory_must_hold_the_object_store(tmp_path):
    assert shared_memory(tmp_path, 1).status == "OK"
    small = shared_memory(tmp_path, 10**18)
    assert small.status == "WARN"
    assert "--shm-size" in small.remedy
    assert shared_memory(tmp_path / "none", 1).status == "WARN"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_a_driver_alone_is_a_failure():
    (without,) = gpus(driver=False)
    (driver,) = gpus(driver=True)
    assert (without.status, driver.status) == ("OK", "FAIL")
    assert "driver" in driver.remedy or "install torch" in driver.remedy


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_every_gpu_multiplies_matrices():
    found = list(gpus(driver=True))
    assert len(found) == torch.cuda.device_count()
    assert all("product right" in finding.found for finding in found)


def test_no_tpu_is_no_failure_and_a_tpu_without_torch_xla_is(monkeypatch):
    assert tpus([]).status == "OK"
    if devices.installed_version("torch-xla") is None:
        finding = tpus(["/dev/accel0"])
        assert finding.status == "FAIL"
        assert "docs/reference/tpu.md" in finding.remedy


def test_what_is_asked_of_a_tpu_is_answered_by_its_own_process_or_in_time(monkeypatch):
    monkeypatch.setattr(devices, "installed_version", lambda name: "2.9.0")
    for code, said in (
        ("print(8.0)", None),
        ("raise OSError('chips are held')", "chips are held"),
        ("import time; time.sleep(60)", "no answer"),
    ):
        monkeypatch.setattr(devices, "_XLA", code)
        finding = tpus(["/dev/accel0"], seconds=2.0 if "sleep" in code else 60.0)
        assert finding.status == ("OK" if said is None else "FAIL")
        assert (said or "computes") in finding.found
    assert sys.executable

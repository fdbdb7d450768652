"""One writer an output: the second is refused and told who the first is; a dead owner's lease is taken over."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from semantica.data.durable import write_atomically
from semantica.data.lease import LEASE_S, Owner, held
from semantica.data.location import location
from semantica.errors import DataError

HOLD = """
import sys, time
from semantica.data.lease import held
from semantica.data.location import location
with held(location(sys.argv[1]), "encode"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """A folder that does not exist yet, on disk and on an S3 server."""
    return (tmp_path if request.param == "local" else location(f"{request.getfixturevalue('s3')}/{tmp_path.name}")) / "out"


@pytest.fixture
def other(folder):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def leases(folder):
    if not folder.parent.exists():  # an object store has no empty folders
        return []
    return [p for p in folder.parent.iterdir() if ".lease-" in p.name]


def test_the_second_writer_is_refused_and_told_who_the_first_is(folder, other):
    with pytest.raises(DataError, match=f"encode: .*out is being written by process {other.pid} on "), held(folder, "encode"):
        pass
    assert len(leases(folder)) == 1


def test_the_lease_of_a_killed_process_is_taken_over_at_once(folder, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    with held(folder, "encode"):
        assert len(leases(folder)) == 1
    assert leases(folder) == []


def test_the_lease_ends_with_the_block_also_after_an_error(folder):
    def fail():
        with held(folder, "encode"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with held(folder, "encode"):
        pass
    assert leases(folder) == []


def test_a_process_that_has_the_number_of_a_dead_one_is_not_its_owner():
    me = Owner.this_process()
    assert not me.is_gone()
    assert replace(me, started=me.started - 100).is_gone()


def test_an_owner_on_another_machine_is_gone_when_it_has_not_renewed_for_long(folder):
    path = folder.parent / ".out.lease-000004"
    owner = Owner("elsewhere", os.getpid(), 0.0, time.time() - LEASE_S / 2)
    write_atomically(path, json.dumps(asdict(owner)).encode())
    with pytest.raises(DataError, match="on elsewhere"), held(folder, "encode"):
        pass
    write_atomically(path, json.dumps(asdict(replace(owner, renewed=time.time() - LEASE_S - 1))).encode())
    with held(folder, "encode"):
        assert [p.name for p in leases(folder)] == [".out.lease-000005"]


def test_a_lease_that_is_being_written_is_held(folder):
    write_atomically(folder.parent / ".out.lease-000000", b"")
    with pytest.raises(DataError, match="being written"), held(folder, "encode"):
        pass


def test_an_output_that_was_taken_over_is_not_finished_by_the_one_who_lost_it(folder, monkeypatch):
    from semantica.data import lease
    from semantica.data.dataset import StageOutput

    monkeypatch.setattr(lease, "RENEW_S", 0.02)
    stage = StageOutput(folder, "scores", {})
    with held(folder, "encode"):
        stage.open()
        path = leases(folder)[0]  # as one does who thinks the owner dead; a renewal may bring the file back at this moment
        write_atomically(path.with_name(".out.lease-000001"), json.dumps(asdict(Owner.this_process())).encode())
        path.unlink(missing_ok=True)
        deadline = time.monotonic() + 10
        while str(folder) not in lease._LOST:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(DataError, match="was taken over by another process"):
            stage.finish({}, {})
    path.with_name(".out.lease-000001").unlink()
    with held(folder, "encode"):
        stage.finish({}, {})


def test_a_lease_that_is_removed_under_its_owner_is_noticed(folder):
    from semantica.data import lease

    with held(folder, "encode"):
        path = leases(folder)[0]
        assert not lease._taken_over(path)
        path.unlink()
        assert lease._taken_over(path)


def test_a_living_process_of_this_machine_keeps_its_lease_however_old(folder, other):
    path = leases(folder)[0]
    owner = json.loads(path.read_bytes())
    write_atomically(path, json.dumps({**owner, "renewed": 0.0}).encode())  # a laptop that slept, a clock that jumped
    with pytest.raises(DataError, match="being written by process"), held(folder, "encode"):
        pass


def test_a_holder_that_began_at_another_number_is_seen(folder, other):
    path = leases(folder)[0]
    write_atomically(folder.parent / ".out.lease-000009", path.read_bytes())
    dead = {**json.loads(path.read_bytes()), "started": 0.0}
    write_atomically(path, json.dumps(dead).encode())  # 0 is dead, 9 lives
    with pytest.raises(DataError, match="being written by process"), held(folder, "encode"):
        pass
    assert [p.name for p in leases(folder)] == [".out.lease-000009"]

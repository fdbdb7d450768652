"""Saving while the training goes on: the files are those of a save that the training waits for, and no error is lost."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from semantica.config import to_dict
from semantica.data.durable import new_attempt
from semantica.errors import WeightsError
from semantica.training.checkpoint import Keeper, Saver, Writers, open_checkpoint, write_checkpoint
from semantica.training.recipe import KeepConfig


@pytest.fixture
def gate(monkeypatch):
    """Writes of the writer's thread wait until the gate is set; gate.reached is set by the first."""
    gate, write = threading.Event(), os.write
    gate.reached = threading.Event()

    def behind_the_gate(descriptor, data):
        if threading.current_thread().name == "checkpoint":
            gate.reached.set()
            assert gate.wait(20)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", behind_the_gate)
    yield gate
    gate.set()


def test_a_save_in_the_background_is_that_in_the_foreground_while_the_network_changes(living, tmp_path, gate):
    write_checkpoint(tmp_path / "foreground", living(2).snapshot())
    state = living(2)
    with Saver(Keeper(tmp_path / "run", KeepConfig()), print) as saver:
        saver.save(state)
        assert gate.reached.wait(20)
        living.on(state)  # a step of the training: weights, average and moments change in place
        with torch.no_grad():
            for tensor in (*state.network.parameters(), *state.ema.values.values()):
                tensor.fill_(float("nan"))
        assert saver.keeper.steps() == []  # it is still being written
        gate.set()
    folder = saver.keeper.folder_of(2)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in (tmp_path / "foreground").iterdir())
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "foreground" / path.name).read_bytes(), path.name


def test_the_next_save_waits_for_the_one_in_flight_and_every_one_is_what_it_was(living, tmp_path, gate):
    state, keeper = living(1), Keeper(tmp_path / "run", KeepConfig(last=9))
    with Saver(keeper, print) as saver:
        saver.save(state)
        threading.Timer(0.3, gate.set).start()
        state = living.on(state)
        started = time.monotonic()
        saver.save(state)  # into the same host memory as the first
        assert time.monotonic() - started > 0.2
        assert keeper.steps()[0] == 1
        for _ in range(3):
            state = living.on(state)
            saver.save(state)
    assert keeper.steps() == [1, 2, 3, 4, 5]
    for step in keeper.steps():
        write_checkpoint(tmp_path / str(step), living(step).snapshot())
        assert open_checkpoint(tmp_path / str(step)).hash == open_checkpoint(keeper.folder_of(step)).hash
    assert 0 < saver.held_seconds < 20


def test_what_is_not_kept_goes_as_new_ones_come_and_a_second_save_of_a_step_changes_nothing(living, tmp_path):
    state, keeper = living(1), Keeper(tmp_path / "run", KeepConfig(last=1, best=1))
    with Saver(keeper, print) as saver:
        for step, metric in ((1, 5.0), (2, 1.0), (3, 4.0), (4, None)):
            saver.save(replace(state, step=step), metric=metric)
        saver.wait()
        assert keeper.steps() == [2, 4]
        before = open_checkpoint(keeper.folder_of(4)).hash
        saver.save(replace(state, step=4), metric=0.0)
    assert open_checkpoint(keeper.folder_of(4)).hash == before


def test_a_defect_of_the_writer_is_raised_at_the_next_save_and_at_the_end(living, tmp_path):
    def broken(failure):
        raise ZeroDivisionError("of the callback")

    state = living(1)
    (tmp_path / "file").write_text("no folder")
    saver = Saver(Keeper(tmp_path / "file" / "run", KeepConfig()), broken)
    saver.save(state)
    with pytest.raises(ZeroDivisionError, match="of the callback"):
        saver.save(state)
    with pytest.raises(ZeroDivisionError, match="of the callback"), saver:
        saver.save(state)


def test_an_end_whose_last_save_failed_is_an_error_and_one_that_fails_otherwise_keeps_its_own(living, tmp_path):
    (tmp_path / "file").write_text("no folder")
    failures = []

    def train(error):
        with Saver(Keeper(tmp_path / "file" / "run", KeepConfig()), failures.append) as saver:
            saver.save(living(1))
            if error is not None:
                raise error

    with pytest.raises(WeightsError, match=r"1 saves in a row failed, the last at step 1: Not a directory; .* has none"):
        train(None)
    assert [(f.step, f.error.errno) for f in failures] == [(1, errno.ENOTDIR)]
    with pytest.raises(KeyboardInterrupt):
        train(KeyboardInterrupt())
    assert len(failures) == 2  # it was waited for


def test_a_success_between_failures_starts_the_count_again(living, tmp_path):
    state, failures = living(1), []
    (tmp_path / "file").write_text("no folder")
    good, bad = Keeper(tmp_path / "run", KeepConfig(last=9)), Keeper(tmp_path / "file" / "run", KeepConfig(last=9))
    with Saver(good, failures.append) as saver:
        for step in range(1, 10):
            saver.wait()
            saver.keeper = bad if step % 3 else good
            saver.save(replace(state, step=step))
    assert [f.in_a_row for f in failures] == [1, 2, 1, 2, 1, 2]
    assert good.steps() == [3, 6, 9]


def test_several_workers_save_and_delete_together_and_each_learns_of_the_failure_of_another(living, tmp_path, monkeypatch):
    attempt, failures, write = new_attempt(), {0: [], 1: []}, os.write
    keeper, barrier, left = Keeper(tmp_path / "run", KeepConfig(last=1)), threading.Barrier(2), []
    states = [living(1), living(1)]

    def full_for_the_second_worker_at_step_2(descriptor, data):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if ".step-000000002." in path and path.endswith("ema-00002-of-00002.safetensors"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full_for_the_second_worker_at_step_2)

    def work(rank):
        saver = Saver(keeper, failures[rank].append, writers=Writers(rank, 2, attempt, patience_s=20.0))
        for step in (1, 2, 3):
            saver.save(replace(states[rank], step=step))
            saver.wait()
            barrier.wait(20)
            if rank == 0:
                left.append([p.name for p in keeper.folder.iterdir()])
            barrier.wait(20)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(f.step, f.in_a_row) for rank in (0, 1) for f in failures[rank]] == [(2, 1), (2, 1)]
    assert "worker 1 could not write its share" in str(failures[0][0].error)
    assert failures[1][0].error.errno == errno.ENOSPC
    assert left == [["step-000000001"], ["step-000000001"], ["step-000000003"]]
    write_checkpoint(tmp_path / "alone", replace(living(1), step=3).snapshot())
    together, alone = keeper.newest(), open_checkpoint(tmp_path / "alone")
    for kind in ("model", "ema", "optimizer"):
        a, b = together.tensors(kind), alone.tensors(kind)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


PROCESS = """
import json, os, sys, time
from pathlib import Path
import torch
from semantica.config import from_dict
from semantica.training.checkpoint import Provenance, TrainState
from semantica.training.ema import Ema
from semantica.training.checkpoint import Keeper
from semantica.training.recipe import EmaConfig, TrainConfig
from semantica.training.recipe import KeepConfig
from semantica.training.checkpoint import Saver

write = os.write
os.write = lambda *args: (time.sleep(0.05), write(*args))[1]
network = torch.nn.Linear(3, 2)
optimizer = torch.optim.Adam(network.parameters())
config = from_dict(TrainConfig, json.loads(sys.argv[2]))
saver = Saver(Keeper(Path(sys.argv[1]), KeepConfig()), print)
saver.save(TrainState(network, Ema(network, EmaConfig()), optimizer, config, 7, Provenance({}, "e", "s")))
print(saver.keeper.steps())
"""


def test_a_process_that_ends_without_closing_still_writes_the_last_save_to_the_end(tiny, tmp_path):
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "run"), json.dumps(to_dict(tiny.config()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert Keeper(tmp_path / "run", KeepConfig()).newest().step == 7

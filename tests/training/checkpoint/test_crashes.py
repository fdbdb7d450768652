"""A crash at every operation of a save: there is always a loadable checkpoint, the older or the new one, never a mixture."""

import errno
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from semantica.errors import WeightsError
from semantica.training.checkpoint import Keeper, Saver, open_checkpoint, write_checkpoint
from semantica.training.recipe import KeepConfig

OPERATIONS = ("mkdir", "write", "fsync", "rename", "unlink", "rmdir")


class Layer:
    """What stands between a save and the disk: every operation of `os` that changes it goes through `before` first."""

    def __init__(self, patch: pytest.MonkeyPatch, before: Callable[..., None]) -> None:
        self.done: list[str] = []
        self.real = {name: getattr(os, name) for name in OPERATIONS}
        for name in OPERATIONS:
            patch.setattr(os, name, self.wrapped(name, before))

    def wrapped(self, name, before):
        def operation(*args, **kwargs):
            before(self, name, args)
            self.done.append(name)
            return self.real[name](*args, **kwargs)

        return operation


@pytest.fixture(scope="module")
def states(living):
    """The states of the steps 1 and 2, of a network with few tensors: every one is an operation to crash at."""
    return small(living, 1), small(living, 2)


def small(living, step):
    torch.manual_seed(0)
    return living(step, nn.Sequential(nn.Linear(60, 50, bias=False), nn.LayerNorm(50)))


@pytest.fixture(scope="module")
def hashes(states, tmp_path_factory):
    """The manifest hashes of their checkpoints."""
    top = tmp_path_factory.mktemp("hashes")
    for state in states:
        write_checkpoint(top / str(state.step), state.snapshot())
    return [open_checkpoint(top / str(state.step)).hash for state in states]


def saver_in(folder, failures):
    return Saver(Keeper(folder, KeepConfig(last=1)), failures.append, background=False)


def with_the_first_saved(folder, states):
    """A saver whose folder holds the checkpoint of step 1; saving step 2 deletes it."""
    failures = []
    saver = saver_in(folder, failures)
    saver.save(states[0])
    assert failures == []
    return saver


@pytest.fixture(scope="module")
def operations(states, tmp_path_factory):
    """The names of all operations of the second save, in order."""
    saver = with_the_first_saved(tmp_path_factory.mktemp("counted") / "run", states)
    with pytest.MonkeyPatch.context() as patch:
        layer = Layer(patch, lambda *_: None)
        saver.save(states[1])
    assert saver.keeper.steps() == [2]
    return layer.done


def test_every_file_is_synced_then_the_folder_then_it_gets_its_name(operations):
    published = operations.index("rename")
    assert operations[:published].count("fsync") == 6  # five files, their folder
    assert operations[published - 1] == "fsync"
    assert operations[published + 1] == "fsync"  # the name, before the older checkpoint loses its own
    assert set(operations) == set(OPERATIONS)
    assert not {"unlink", "rmdir"} & set(operations[: published + 2])


class Dead(BaseException):
    """The process is gone."""


class Cut:
    """The end of a process before its operation `at`, where a write is half done: nothing that it does later reaches the disk.

    power: what was not synced is lost too, as when the power goes. really: by SIGKILL, in a process of its own.
    """

    def __init__(self, at: int, *, power: bool = False, really: bool = False) -> None:
        self.at, self.power, self.really = at, power, really
        self.files: set[str] = set()  # written, not synced
        self.names: dict[str, set[str]] = {}  # folder -> what was made in it and is not synced
        self.dead = False

    def __call__(self, layer, name, args) -> None:
        if self.dead:
            raise Dead
        path = os.readlink(f"/proc/self/fd/{args[0]}") if name in ("write", "fsync") else os.fspath(args[0])
        if len(layer.done) == self.at:
            if name == "write":
                layer.real["write"](args[0], args[1][: len(args[1]) // 2])
            self.die(layer)
        if name == "write":
            self.files.add(path)
            self.names.setdefault(os.path.dirname(path), set()).add(path)
        elif name == "fsync":
            self.files.discard(path)
            self.names.pop(path, None)
        elif name == "rename":  # what is in the folder goes with it
            target = os.fspath(args[1])
            moved = {p.replace(path, target, 1) for p in self.names.pop(path, ())}
            self.names |= {target: moved} if moved else {}
            self.files = {p.replace(path, target, 1) for p in self.files}

    def die(self, layer) -> None:
        self.dead = True
        if self.power:
            for path in self.files:
                os.truncate(path, 0)
            for path in set().union(*self.names.values()):
                layer.real["unlink"](path)
        if self.really:
            os.kill(os.getpid(), signal.SIGKILL)
        raise Dead


def what_is_left(run, states, hashes, cut):
    """The step that a run goes on from, when its save of step 2 in the folder `run` ended so. Checks all that must hold."""
    saver = saver_in(run, [])
    with pytest.MonkeyPatch.context() as patch:
        Layer(patch, cut)
        saver.save(states[1])
    return step_in(saver.keeper, hashes)


def step_in(keeper, hashes):
    # What has the name of a checkpoint is one, at any moment.
    assert all(open_checkpoint(keeper.folder_of(step)).hash == hashes[step - 1] for step in keeper.steps())
    newest = keeper.resume().step
    assert sorted(p.name for p in keeper.folder.iterdir()) == [keeper.folder_of(step).name for step in keeper.steps()]
    shutil.rmtree(keeper.folder)
    return newest


@pytest.mark.parametrize("power", [False, True], ids=["process", "power"])
def test_after_a_crash_at_any_operation_the_older_or_the_new_checkpoint_is_there_and_whole(
    states, hashes, operations, tmp_path, power
):
    first, found = with_the_first_saved(tmp_path / "first", states).keeper.folder, []
    for at in range(len(operations) + 1):
        cut = Cut(at, power=power)
        found.append(what_is_left(Path(shutil.copytree(first, tmp_path / "run")), states, hashes, cut))
        assert cut.dead == (at < len(operations))
    published = operations.index("rename")
    assert found == [1] * (published + 1) + [2] * (len(operations) - published)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_process_that_is_killed_in_a_save_leaves_what_the_end_of_its_operations_leaves(
    states, hashes, operations, tmp_path, share
):
    run, at = with_the_first_saved(tmp_path / "run", states).keeper.folder, round(share * len(operations))
    shutil.copytree(run, tmp_path / "copy")
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            what_is_left(run, states, hashes, Cut(at, really=True))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert step_in(Keeper(run, KeepConfig()), hashes) == what_is_left(tmp_path / "copy", states, hashes, Cut(at))


def test_an_error_of_the_disk_at_any_operation_is_reported_and_the_next_save_succeeds(states, hashes, operations, tmp_path, living):
    first = with_the_first_saved(tmp_path / "first", states).keeper.folder
    published = operations.index("rename")
    third = small(living, 3)
    for at in range(len(operations)):
        failures = []
        saver = saver_in(Path(shutil.copytree(first, tmp_path / "run")), failures)

        def fail(layer, name, args, at=at):
            if len(layer.done) == at:
                layer.done.append("failed")
                raise OSError(errno.EIO, "Input/output error")

        with pytest.MonkeyPatch.context() as patch:
            Layer(patch, fail)
            saver.save(states[1])
        keeper = saver.keeper
        newest = 2 if at > published else 1
        assert keeper.newest().hash == hashes[newest - 1], at
        if at <= published:
            assert [(f.step, f.error.errno, f.in_a_row) for f in failures] == [(2, errno.EIO, 1)], at
            assert [p.name for p in keeper.folder.iterdir()] == [keeper.folder_of(1).name], at  # nothing is left of it
        saver.save(third)
        saver.close()
        assert keeper.newest().step == 3
        shutil.rmtree(keeper.folder)


class Full:
    """A disk that takes `room` more bytes, and then no more: a write that does not fit is cut, and the next one fails."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, layer, name, args) -> None:
        if name != "write":
            return
        if len(args[1]) > self.room:
            layer.real["write"](args[0], args[1][: self.room])
            self.room = 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(args[1])


def size_of(folder) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_a_disk_that_is_full_at_any_byte_leaves_the_older_checkpoint_and_no_part_of_the_new_one(states, hashes, tmp_path):
    saver = with_the_first_saved(tmp_path / "run", states)
    saver.max_failures = 1000
    failures = []
    saver.on_failure = failures.append
    chance, size = random.Random(0), size_of(saver.keeper.folder)
    for trial in range(60):
        with pytest.MonkeyPatch.context() as patch:
            Layer(patch, Full(chance.randrange(size - 100)))
            saver.save(states[1])
        assert failures[-1].error.errno == errno.ENOSPC
        assert len(failures) == failures[-1].in_a_row == trial + 1
        assert saver.keeper.newest().hash == hashes[0]
        assert [p.name for p in saver.keeper.folder.iterdir()] == [saver.keeper.folder_of(1).name]
    saver.save(states[1])  # there is room again
    saver.close()
    assert saver.keeper.newest().hash == hashes[1]


@pytest.fixture
def small_disk(tmp_path, states):
    """A real file system with room for a checkpoint and a half."""
    write_checkpoint(tmp_path / "one", states[0].snapshot())
    disk = tmp_path / "disk"
    disk.mkdir()
    blocks = sum(-(-p.stat().st_size // 4096) for p in (tmp_path / "one").iterdir())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={blocks * 4096 * 3 // 2}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here; the test with an injected error covers the same")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_on_a_full_disk_training_goes_on_loudly_and_stops_after_three(small_disk, states, hashes, caplog):
    failures = []
    with pytest.raises(WeightsError) as caught, Saver(Keeper(small_disk / "run", KeepConfig(last=1)), failures.append) as saver:  # noqa: PT012
        saver.save(states[0])
        state = states[1]
        for trial in range(3):
            saver.save(state)  # comes back: the training goes on
            saver.wait()
            assert [p.name for p in (small_disk / "run").iterdir()] == ["step-000000001"]
            assert caplog.text.count("was not saved: No space left on device") == trial + 1
            if trial < 2:
                saver.check()
        saver.save(state)
    assert [(f.step, f.error.errno, f.in_a_row) for f in failures] == [(2, errno.ENOSPC, n) for n in (1, 2, 3)]
    message = str(caught.value)
    assert "3 saves in a row failed, the last at step 2: No space left on device; the newest checkpoint is" in message
    assert str(small_disk / "run" / "step-000000001") in message
    assert Keeper(small_disk / "run", KeepConfig()).resume().hash == hashes[0]

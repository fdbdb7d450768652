"""The folder of a run's checkpoints: what is kept, which one a run resumes from, and what is never deleted."""

import errno
import fcntl
import logging
import os
import shutil
import time
from dataclasses import replace

import pytest

from semantica.data.durable import marked, new_attempt, partial_of
from semantica.data.location import file_sha256
from semantica.errors import ConfigError, WeightsError
from semantica.training.checkpoint import Keeper, Saver, open_checkpoint, write_checkpoint
from semantica.training.recipe import KeepConfig

NAN = float("nan")


@pytest.mark.parametrize(
    ("metrics", "keep", "stays"),
    [
        ({}, {}, []),
        ({1: None}, {"last": 1}, [1]),
        ({1: None, 2: None, 3: None}, {"last": 1}, [3]),
        ({3: None, 1: None, 2: None}, {"last": 2}, [2, 3]),  # by step, not by the order of saving
        ({1: None, 2: None}, {"last": 5}, [1, 2]),
        ({1: 5.0, 2: 1.0, 3: 4.0}, {"last": 1, "best": 1}, [2, 3]),
        ({1: 5.0, 2: 1.0, 3: 4.0}, {"last": 1, "best": 1, "best_is": "highest"}, [1, 3]),
        ({1: 5.0, 2: 1.0, 3: 0.5}, {"last": 1, "best": 1}, [3]),  # the last is the best
        ({1: 5.0, 2: 1.0, 3: 0.5}, {"last": 1, "best": 2}, [2, 3]),
        ({1: 1.0, 2: 1.0, 3: 2.0}, {"last": 1, "best": 1}, [2, 3]),  # of equals the later
        ({1: None, 2: NAN, 3: 9.0, 4: None}, {"last": 1, "best": 2}, [3, 4]),  # no metric is never the best
        ({1: -1.0, 2: float("-inf"), 3: 0.0}, {"last": 1, "best": 1}, [2, 3]),
        ({10: None, 15: None, 20: None, 25: None}, {"last": 1, "every_steps": 10}, [10, 20, 25]),
        ({10: None, 15: None, 20: None, 25: None}, {"last": 1, "every_steps": 4}, [20, 25]),
        ({0: None, 5: None, 7: None}, {"last": 1, "every_steps": 5}, [0, 5, 7]),
        ({10: 3.0, 15: 1.0, 20: 2.0, 25: 9.0, 30: 8.0}, {"last": 2, "best": 1, "every_steps": 10}, [10, 15, 20, 25, 30]),
        ({10: 3.0, 15: 1.0, 17: 2.0, 25: 9.0, 31: 8.0}, {"last": 1, "best": 1, "every_steps": 10}, [10, 15, 31]),
    ],
)
def test_what_stays(metrics, keep, stays):
    assert sorted(KeepConfig(**keep).steps(metrics)) == stays


@pytest.mark.parametrize(("field", "value"), [("last", 0), ("best", -1), ("every_steps", -1)])
def test_rules_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        KeepConfig(**{field: value})


@pytest.fixture(scope="module")
def whole(living, tmp_path_factory):
    """Six checkpoints in one folder, of the steps 1 to 6, with the metrics 6, 5, 4, ...; no other rule than to keep all."""
    keeper, state = Keeper(tmp_path_factory.mktemp("whole"), KeepConfig(last=9)), living(1)
    for step in range(1, 7):
        write_checkpoint(keeper.folder_of(step), replace(state, step=step).snapshot(metric=7.0 - step))
    return keeper


@pytest.fixture
def run(whole, tmp_path):
    """run(**rules): a keeper with those rules of a copy of the six."""
    return lambda **rules: Keeper(shutil.copytree(whole.folder, tmp_path / "run"), KeepConfig(**rules))


def damage(keeper, *steps):
    for step in steps:
        path = keeper.folder_of(step) / "ema.safetensors"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def names(keeper):
    return sorted(p.name for p in keeper.folder.iterdir())


def test_the_newest_is_the_one_of_the_greatest_step(run, tmp_path):
    assert run(last=1).newest().step == 6
    assert Keeper(tmp_path / "nothing", KeepConfig()).newest() is None
    assert Keeper(tmp_path / "fresh", KeepConfig()).resume() is None


def test_prune_deletes_what_no_rule_wants_and_nothing_else(run):
    keeper = run(last=2, best=1, best_is="highest", every_steps=3)
    (keeper.folder / "notes.txt").write_text("mine")
    assert keeper.prune() == [2, 4]
    assert keeper.steps() == [1, 3, 5, 6]  # the highest metric is that of step 1
    assert keeper.prune() == []
    assert names(keeper) == ["notes.txt", *(f"step-00000000{step}" for step in (1, 3, 5, 6))]
    assert all(open_checkpoint(keeper.folder_of(step)).step == step for step in keeper.steps())


def test_the_newest_loadable_one_is_never_deleted_even_when_no_rule_wants_it(run):
    keeper = run(last=2)
    damage(keeper, 5, 6)
    assert keeper.prune() == [1, 2, 3]
    assert keeper.newest().step == 4
    damage(keeper, 4)
    assert keeper.prune() == []  # with none left to go on from, nothing is deleted
    assert keeper.steps() == [4, 5, 6]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(run, caplog):
    keeper = run(last=2)
    damage(keeper, 6)
    (keeper.folder_of(5) / "manifest.json").unlink()
    before = names(keeper)
    assert keeper.newest().step == 4
    assert names(keeper) == before  # who only reads changes nothing
    with caplog.at_level(logging.WARNING):
        assert keeper.resume().step == 4
    assert f"{keeper.folder_of(6) / 'ema.safetensors'} is damaged" in caplog.text
    assert f"{keeper.folder_of(5)} has no manifest.json" in caplog.text
    assert keeper.steps() == [1, 2, 3, 4]
    assert [n.rpartition("-")[0] for n in names(keeper)[:2]] == ["damaged-step-000000005", "damaged-step-000000006"]
    assert keeper.prune() == [1, 2]
    assert len(names(keeper)) == 4  # what was set aside stays for a person to look at


def test_damaged_checkpoints_that_are_older_than_the_newest_are_left_alone(run, caplog):
    keeper = run(last=2)
    damage(keeper, 3)
    assert keeper.resume().step == 6
    assert caplog.text == ""
    assert keeper.steps() == [1, 2, 3, 4, 5, 6]


def test_when_none_is_loadable_nothing_is_started_from_the_beginning_unasked(run):
    keeper = run(last=2)
    damage(keeper, 1, 2, 3, 4, 5, 6)
    before = names(keeper)
    for _ in range(2):  # a restarted run is told the same
        with pytest.raises(WeightsError, match=r"none of the 6 checkpoints in .* is loadable; .*ema\.safetensors is damaged"):
            keeper.resume()
    assert names(keeper) == before


def test_a_newest_checkpoint_of_another_version_stops_the_run_instead_of_going_back(run, monkeypatch):
    keeper = run(last=2)
    monkeypatch.setattr("semantica.training.checkpoint.format.FORMAT", 3)
    with pytest.raises(WeightsError, match="has format 2, expected 3"):
        keeper.resume()
    assert keeper.steps() == [1, 2, 3, 4, 5, 6]


def test_a_step_is_saved_again_only_in_the_place_of_a_damaged_one(run, living):
    keeper = run(last=9)
    damage(keeper, 6)
    before, (fifth, sixth) = keeper.resume().hash, (replace(living(2), step=step) for step in (5, 6))
    with Saver(keeper, print) as saver:
        saver.save(fifth)
        saver.save(sixth)
    assert open_checkpoint(keeper.folder_of(5)).hash == before  # it was loadable, and is what it was
    again = open_checkpoint(keeper.folder_of(6))
    write_checkpoint(keeper.folder.parent / "expected", sixth.snapshot())
    assert again.hash == open_checkpoint(keeper.folder.parent / "expected").hash


def test_one_process_reads_every_byte_of_a_checkpoint_and_the_others_compare_sizes(run, monkeypatch):
    keeper, hashed = run(last=2), []
    monkeypatch.setattr("semantica.training.checkpoint.format.file_sha256", lambda path: hashed.append(path) or file_sha256(path))
    step = keeper.resume().step
    assert len(hashed) == 4  # the three files of tensors, and the configuration
    hashed.clear()
    other = keeper.at(step)
    assert hashed == []
    assert other == keeper.newest()
    (keeper.folder_of(step) / "ema.safetensors").write_bytes(b"short")
    with pytest.raises(WeightsError, match=r"ema\.safetensors is damaged \(it has 5 bytes, expected "):
        keeper.at(step)


def test_what_nobody_writes_any_more_is_removed_and_what_somebody_writes_is_not(run):
    keeper = run(last=2)
    dead, alive, foreign, old, strange = (
        partial_of(keeper.folder_of(7), attempt)
        for attempt in (new_attempt(), new_attempt(), "elsewhere.0123456789ab", "elsewhere.ba9876543210", "x")
    )
    other = keeper.folder / ".model.partial"
    for folder in (dead, alive, foreign, old, strange, other):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    long_ago = time.time() - 25 * 3600
    for path in (old / "model.safetensors", old):
        os.utime(path, (long_ago, long_ago))
    with marked(alive):
        assert keeper.resume().step == 6
    assert not dead.exists()
    assert not old.exists()
    assert all((folder / "model.safetensors").exists() for folder in (alive, foreign, strange, other))
    keeper.resume()  # its writer is gone now
    assert not alive.exists()


def test_where_locks_do_not_work_a_day_decides(run, monkeypatch):
    keeper = run(last=2)
    partial = partial_of(keeper.folder_of(7), new_attempt())
    partial.mkdir()

    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    keeper.resume()
    assert partial.exists()
    long_ago = time.time() - 25 * 3600
    os.utime(partial, (long_ago, long_ago))
    keeper.resume()
    assert not partial.exists()

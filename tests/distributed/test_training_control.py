"""What driver and workers of a training decide about each other: who is killed, how many work, what the history holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semantica.distributed.training_control import Seen
from semantica.distributed.training_elastic import largest_world
from semantica.distributed.training_guard import culprits
from semantica.distributed.training_history import JOURNAL, Journal, complete_history
from semantica.training.recipe import ComputeConfig


def seen(rank: int, steps: int, silent_s: float, still_s: float) -> Seen:
    return Seen(rank, f"process {rank}", None, steps, silent_s, still_s)


def test_the_stopped_worker_is_killed_and_not_those_that_wait_for_it() -> None:
    waiting, silent = seen(0, 5, 0.4, 11.0), seen(1, 5, 10.8, 11.0)
    assert culprits([waiting, silent], 10.0) == [silent]
    assert culprits([seen(0, 5, 0.4, 9.0), seen(1, 5, 9.0, 9.0)], 10.0) == []
    assert culprits([], 10.0) == []


def test_of_workers_that_all_answer_the_one_with_the_fewest_steps_is_killed() -> None:
    assert culprits([seen(0, 6, 0.1, 11.0), seen(1, 5, 0.1, 11.0)], 10.0) == [seen(1, 5, 0.1, 11.0)]


@pytest.mark.parametrize(("possible", "lanes", "world"), [(3, 4, 2), (5, 12, 4), (100, 64, 64), (63, 64, 32), (1, 7, 1), (0, 4, 0)])
def test_an_elastic_group_is_the_largest_that_divides_the_lanes(possible: int, lanes: int, world: int) -> None:
    assert largest_world(possible, lanes) == world


@pytest.mark.parametrize(
    ("possible", "lanes", "of", "world"), [(7, 64, 2, 4), (3, 64, 4, 0), (12, 12, 3, 12), (11, 12, 3, 6), (5, 7, 2, 0)]
)
def test_an_elastic_group_can_share_the_state_as_the_config_says(possible: int, lanes: int, of: int, world: int) -> None:
    """Between `of` workers, and nothing else: every number it is given is one that the recipe accepts."""
    assert largest_world(possible, lanes, of) == world
    if world:
        ComputeConfig(parallel="hsdp", shard_workers=of).check_workers(world)


def test_the_history_is_whole_after_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(json.dumps([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]))
    journal = Journal(tmp_path / JOURNAL)
    journal.add(2, {"loss": 2.0})
    journal.add(3, {"loss": 3.0, "v_loss_logsnr_0": 5.0})
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"step": 4, "lo')
    Journal(tmp_path / JOURNAL).add(4, {"loss": 4.0})
    expected = [{"step": step, "loss": float(step)} for step in (1, 2, 3, 4)]
    assert complete_history(tmp_path) == expected
    assert json.loads((tmp_path / "history.json").read_text()) == expected

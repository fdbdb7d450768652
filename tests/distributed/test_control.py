"""What driver and workers of a training decide about each other: who is killed, how many work, how it ends."""

from __future__ import annotations

import pytest

from semantica.distributed.control import Control, WorkerState, stalled_workers
from semantica.distributed.elastic import largest_world
from semantica.training.recipe import ComputeConfig


def state(rank: int, steps: int, silent_s: float, still_s: float) -> WorkerState:
    return WorkerState(rank, f"process {rank}", None, steps, silent_s, still_s)


def test_the_stopped_worker_is_killed_and_not_those_that_wait_for_it() -> None:
    waiting, silent = state(0, 5, 0.4, 11.0), state(1, 5, 10.8, 11.0)
    assert stalled_workers([waiting, silent], 10.0) == [silent]
    assert stalled_workers([state(0, 5, 0.4, 9.0), state(1, 5, 9.0, 9.0)], 10.0) == []
    assert stalled_workers([], 10.0) == []


def test_of_workers_that_all_answer_the_one_with_the_fewest_steps_is_killed() -> None:
    assert stalled_workers([state(0, 6, 0.1, 11.0), state(1, 5, 0.1, 11.0)], 10.0) == [state(1, 5, 0.1, 11.0)]


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


def test_a_training_that_stops_says_so_in_one_way_whether_it_was_asked_or_can_go_no_further() -> None:
    asked, stuck = Control(), Control()
    asked.join(0, 1, "process 1", None)
    asked.stop_at(7)
    assert (asked.outcome().stopped_at, asked.outcome().reason, asked.outcome().num_groups) == (7, "", 1)
    stuck.fail("worker 0: killed")
    stuck.stop_at(9, "not finite")
    assert (stuck.outcome().stopped_at, stuck.outcome().reason) == (9, "not finite")
    assert stuck.outcome().failures == ("worker 0: killed",)


def test_a_sign_of_life_of_a_process_that_was_replaced_is_not_one_of_its_successor() -> None:
    control = Control()
    control.join(0, 2, "old", None)
    control.join(1, 2, "other", None)
    control.join(0, 1, "new", None)  # a smaller group
    control.ask_to_save()
    assert control.beat(0, "old", 5) == (False, 1)
    assert [(worker.rank, worker.name, worker.steps) for worker in control.workers()] == [(0, "new", 0)]
    control.leave(0, "old")
    assert len(control.workers()) == 1
    control.ask_to_stop()
    assert control.beat(0, "new", 5) == (True, 1)
    assert control.workers()[0].steps == 5

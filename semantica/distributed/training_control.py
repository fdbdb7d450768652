"""What the driver and the workers of a training tell each other while it runs: that a worker lives and moves, and that the training
is to be saved or stopped. An actor on the driver's machine between them; every worker calls it from a thread of its own.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.distributed
from ray.exceptions import RayError

from semantica.distributed.ray_private import get_train_context
from semantica.training.loop import Order

_log = logging.getLogger(__name__)
_ASK_S = 0.5  # how often the first worker asks whether the training is to be stopped [C]
_BEAT_S = 10.0  # at most this long between two signs of life of a worker [C]


@dataclass
class _Member:
    name: str
    actor: Any
    steps: int
    seen: float  # time.monotonic() of the last sign of life ...
    moved: float  # ... and of the last step


@dataclass(frozen=True)
class Seen:
    """A worker as the others see it: silent_s since its last sign of life, still_s since its last step, or since it began."""

    rank: int
    name: str
    actor: Any
    steps: int
    silent_s: float
    still_s: float


class Control:
    """Who of the workers lives and moves, by one clock, and what they are asked for. An actor; the driver makes it."""

    def __init__(self) -> None:
        self.members: dict[int, _Member] = {}
        self.stop = False
        self.num_saves = 0  # that were asked for so far
        self.stopped: int | None = None
        self.failures: list[str] = []
        self.num_groups = 0

    def join(self, rank: int, world: int, name: str, actor: Any) -> None:
        """A worker of a new group begins, in the place of that of the group before."""
        now = time.monotonic()
        self.members = {other: member for other, member in self.members.items() if other < world}
        self.members[rank] = _Member(name, actor, 0, now, now)
        self.num_groups += rank == 0

    def beat(self, rank: int, name: str, steps: int) -> tuple[bool, int]:
        """A worker's sign of life, after so many steps. Returns whether to stop, and how many saves were asked for so far."""
        member = self.members.get(rank)
        if member is not None and member.name == name:
            member.seen = time.monotonic()
            if steps != member.steps:
                member.steps, member.moved = steps, member.seen
        return self.stop, self.num_saves

    def leave(self, rank: int, name: str) -> None:
        """A worker has come to its end."""
        if rank in self.members and self.members[rank].name == name:
            del self.members[rank]

    def fail(self, reason: str) -> None:
        """The group has failed."""
        self.failures.append(reason)
        self.end()

    def end(self) -> None:
        """Ray ends the group: none of its workers is watched any more."""
        self.members = {}

    def look(self) -> list[Seen]:
        """The workers of the group that runs."""
        now = time.monotonic()
        return [Seen(rank, m.name, m.actor, m.steps, now - m.seen, now - m.moved) for rank, m in sorted(self.members.items())]

    def ask_to_stop(self) -> None:
        """Have the training saved and ended after the next step."""
        self.stop = True

    def ask_to_save(self) -> None:
        """Have the training saved after the next step."""
        self.num_saves += 1

    def set_stopped(self, step: int) -> None:
        """The training was saved at `step` and has ended, as asked."""
        self.stopped = step

    def outcome(self) -> tuple[int | None, int, list[str]]:
        """The step at which the training was stopped, if it was, the number of groups, and why each that failed did."""
        return self.stopped, self.num_groups, self.failures


class Pulse:
    """A worker's end of Control: says in a thread that it lives, and hears what is asked for. Used as a context.

    What is asked for matters on the first worker alone, which hears within half a second: it tells the others (`Orders`).
    """

    def __init__(self, control: Any, rank: int, world: int, stall_s: float) -> None:
        self.control, self.rank, self.world = control, rank, world
        self.name = f"process {os.getpid()} on {socket.gethostname()}"
        self.steps = 0
        self._asked = Order.GO_ON
        self._every_s = min(_ASK_S if rank == 0 else _BEAT_S, stall_s / 5)
        self._saves: int | None = None  # that were asked for before this worker began
        self._notice: object = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Pulse:
        actor = ray.get_runtime_context().current_actor
        ray.get(self.control.join.remote(self.rank, self.world, self.name, actor))
        self._hear()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        self.control.leave.remote(self.rank, self.name)

    def take(self) -> Order:
        """What is asked for now. A save is asked for once, a stop until it is done."""
        asked = self._asked
        if asked is Order.SAVE:
            self._asked = Order.GO_ON
        return asked

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            try:
                self._hear()
            except RayError as error:  # the driver is gone: Ray ends this process, or starts another
                _log.warning("train: no answer from the driver (%s)", error)

    def _hear(self) -> None:
        stop, saves = ray.get(self.control.beat.remote(self.rank, self.name, self.steps), timeout=60)
        notice = _preemption_notice()
        if stop:
            self._asked = Order.STOP
        elif (self._saves is not None and saves != self._saves) or (notice is not None and notice != self._notice):
            self._asked = Order.SAVE
        self._saves, self._notice = saves, notice


def _preemption_notice() -> object:
    """What Ray was told about machines of this group that will be taken away; None when nothing.

    `ray.train.get_preemption_info` says the same, but waits for all workers each time. This reads what it reads.
    """
    return get_train_context().preemption_context.preemption_info


class Orders:
    """`orders()` after every step, on every worker: what the first one was asked for, the same after the same step on all.

    The first worker sends it after each step and all read it after the next one. By then every worker has sent its gradients of
    that step, so it has long come and nobody waits for it.
    """

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        # A group of its own on CPUs: the order overtakes no gradients, and no GPU is waited for to read it.
        self._group: Any = torch.distributed.new_group(backend="gloo") if pulse.world > 1 else None
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._sent: Any = None

    def __call__(self) -> Order:
        self._pulse.steps += 1
        if self._group is None:
            return self._pulse.take()
        order = self._read()
        if self._pulse.rank == 0:
            self._flag.fill_(int(self._pulse.take()))
        self._sent = torch.distributed.broadcast(self._flag, src=0, group=self._group, async_op=True)
        return order

    def _read(self) -> Order:
        if self._sent is None:
            return Order.GO_ON
        self._sent.wait()
        return Order(int(self._flag))

    def close(self) -> None:
        """Wait for what was sent last: the group is not ended under it."""
        self._read()

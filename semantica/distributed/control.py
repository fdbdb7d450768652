"""What the driver and the workers of a training tell each other while it runs, through one actor on the driver's machine.

In: from the workers, that they live, which step they are at, what they report and how the training ended; from the driver, that
it is to be saved or stopped. Out: orders that all workers obey after the same step; workers that stand still are killed, so that
Ray starts the group again; and how the training ended (`Outcome`). Every worker calls the actor from a thread of its own.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
import torch
import torch.distributed
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from semantica.distributed.ray_private import WorkerGroupCallback, get_train_context
from semantica.distributed.reports import Report
from semantica.distributed.session import say
from semantica.training.loop import Order

_log = logging.getLogger(__name__)
_ASK_S = 0.5  # how often the first worker asks whether the training is to be stopped [C]
_BEAT_S = 10.0  # at most this long between two signs of life of a worker [C]
_GONE_S = 10.0  # workers without a sign of life for so long will not save what they are asked to save [C]


@dataclass(frozen=True)
class WorkerState:
    """A worker as the actor knows it: silent_s since its last sign of life, still_s since its last step, or since it began."""

    rank: int
    name: str
    actor: Any
    steps: int
    silent_s: float
    still_s: float


@dataclass(frozen=True)
class Outcome:
    """How a training ended. stopped_at: the step at which it was saved and ended before its last one, or None.

    reason: why it can go no further, "" when it was asked to stop. num_groups: of workers, one after the other; failures: why those
    failed that did.
    """

    stopped_at: int | None
    reason: str
    num_groups: int
    failures: tuple[str, ...]


@dataclass
class _Member:
    name: str
    actor: Any
    steps: int
    seen: float  # time.monotonic() of the last sign of life ...
    moved: float  # ... and of the last step


class Control:
    """The actor: who of the workers lives and moves, by one clock; what they are asked for; what they report; how it ends."""

    def __init__(self) -> None:
        self._members: dict[int, _Member] = {}
        self._stop, self._num_saves = False, 0  # what was asked for so far
        self._reports: list[Report] = []
        self._nonfinite_at: int | None = None
        self._stopped_at: int | None = None
        self._reason = ""
        self._num_groups = 0
        self._failures: list[str] = []

    # Called by workers.

    def join(self, rank: int, world: int, name: str, actor: Any) -> None:
        """A worker of a new group begins, in the place of that of the group before."""
        now = time.monotonic()
        self._members = {other: member for other, member in self._members.items() if other < world}
        self._members[rank] = _Member(name, actor, 0, now, now)
        self._num_groups += rank == 0

    def beat(self, rank: int, name: str, steps: int) -> tuple[bool, int]:
        """A worker's sign of life, after so many steps. Returns whether to stop, and how many saves were asked for so far."""
        member = self._members.get(rank)
        if member is not None and member.name == name:
            member.seen = time.monotonic()
            if steps != member.steps:
                member.steps, member.moved = steps, member.seen
        return self._stop, self._num_saves

    def leave(self, rank: int, name: str) -> None:
        """A worker has come to its end."""
        if rank in self._members and self._members[rank].name == name:
            del self._members[rank]

    def report(self, report: Report) -> None:
        """Hand a report to the driver."""
        self._reports.append(report)

    def nonfinite_at(self) -> int | None:
        """The step up to which an earlier group had too many steps in a row that were not finite."""
        return self._nonfinite_at

    def set_nonfinite_at(self, step: int) -> None:
        """Remember that step for the next group."""
        self._nonfinite_at = step

    def stop_at(self, step: int, reason: str = "") -> None:
        """The training has ended before its last step, as asked, or for a reason that a new group would meet again."""
        self._stopped_at, self._reason = step, reason

    # Called by the driver and by Ray's controller of the training.

    def ask_to_stop(self) -> None:
        """Have the training saved and ended after the next step."""
        self._stop = True

    def ask_to_save(self) -> None:
        """Have the training saved after the next step."""
        self._num_saves += 1

    def fail(self, reason: str) -> None:
        """The group has failed."""
        self._failures.append(reason)
        self.end_group()

    def end_group(self) -> None:
        """Ray ends the group: none of its workers is watched any more."""
        self._members = {}

    def workers(self) -> list[WorkerState]:
        """The workers of the group that runs."""
        now = time.monotonic()
        members = sorted(self._members.items())
        return [WorkerState(rank, m.name, m.actor, m.steps, now - m.seen, now - m.moved) for rank, m in members]

    def take_reports(self) -> list[Report]:
        """The reports since the last call."""
        taken, self._reports = self._reports, []
        return taken

    def outcome(self) -> Outcome:
        """How the training ended."""
        return Outcome(self._stopped_at, self._reason, self._num_groups, tuple(self._failures))


def start_control() -> Any:
    """The actor, on the driver's machine, as Ray's controller of the training is: other machines may go."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Control).remote()


class Link:
    """A worker's end of the actor, used as a context: a thread says that the worker lives, and hears what is asked for.

    Only the first worker heeds what it hears, within half a second. It sends its order along after each step, and all read it after
    the next one. By then every worker has sent its gradients of that step, so the order has long come and nobody waits for it.
    """

    def __init__(self, control: Any, rank: int, world: int, stall_s: float) -> None:
        self.control, self.rank, self.world = control, rank, world
        self.name = f"process {os.getpid()} on {socket.gethostname()}"
        self._steps = 0
        self._asked = Order.GO_ON
        self._num_saves: int | None = None  # that were asked for before this worker began
        self._notice: object = None
        self._every_s = min(_ASK_S if rank == 0 else _BEAT_S, stall_s / 5)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._group: Any = None
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._sent: Any = None

    def __enter__(self) -> Link:
        actor = ray.get_runtime_context().current_actor
        ray.get(self.control.join.remote(self.rank, self.world, self.name, actor))
        self._hear()
        self._thread.start()
        if self.world > 1:
            # A group of its own on CPUs: the order overtakes no gradients, and no GPU is waited for to read it.
            self._group = torch.distributed.new_group(backend="gloo")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._received()  # the group is not ended under what was sent last
        self._end.set()
        self._thread.join()
        self.control.leave.remote(self.rank, self.name)

    def order(self) -> Order:
        """What is asked for after this step, the same on every worker. A save is asked for once, a stop until it is done."""
        self._steps += 1
        if self._group is None:
            return self._take()
        order = self._received()
        if self.rank == 0:
            self._flag.fill_(int(self._take()))
        self._sent = torch.distributed.broadcast(self._flag, src=0, group=self._group, async_op=True)
        return order

    def _take(self) -> Order:
        asked = self._asked
        if asked is Order.SAVE:
            self._asked = Order.GO_ON
        return asked

    def _received(self) -> Order:
        if self._sent is None:
            return Order.GO_ON
        self._sent.wait()
        return Order(int(self._flag))

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            try:
                self._hear()
            except RayError as error:  # the driver is gone: Ray ends this process, or starts another
                _log.warning("train: no answer from the driver (%s)", error)

    def _hear(self) -> None:
        stop, num_saves = ray.get(self.control.beat.remote(self.rank, self.name, self._steps), timeout=60)
        notice = _preemption_notice()
        if stop:
            self._asked = Order.STOP
        elif (self._num_saves is not None and num_saves != self._num_saves) or (notice is not None and notice != self._notice):
            self._asked = Order.SAVE
        self._num_saves, self._notice = num_saves, notice


def _preemption_notice() -> object:
    """What Ray was told about machines of this group that will be taken away; None when nothing.

    `ray.train.get_preemption_info` says the same, but waits for all workers each time. This reads what it reads.
    """
    return get_train_context().preemption_context.preemption_info


class GroupEvents(WorkerGroupCallback):  # type: ignore[misc]
    """Tells the actor when Ray sees a group fail and when it ends one. Runs where Ray's controller of the training runs.

    Ray's public `UserCallback` does not hear of a group that ends because a machine is taken away.
    """

    def __init__(self, control: Any) -> None:
        self.control = control

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Say which workers failed, and why the first did."""
        if errors := worker_group_status.errors:
            first = str(next(iter(errors.values()))).strip() or "no reason given"
            self.control.fail.remote(f"worker {', '.join(map(str, sorted(errors)))}: {first.splitlines()[0][:200]}")

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Say that the group ends."""
        self.control.end_group.remote()


def stalled_workers(workers: Sequence[WorkerState], stall_s: float) -> list[WorkerState]:
    """The workers to kill; none while all make steps. A worker that only waits for a stopped one lives: it gives signs of life.

    Where all give signs of life, the one with the fewest steps.
    """
    if not any(worker.still_s > stall_s for worker in workers):
        return []
    silent = [worker for worker in workers if worker.silent_s > stall_s / 2]
    return silent or [min(workers, key=lambda worker: (worker.steps, worker.rank))]


@contextmanager
def killing_stalled_workers(control: Any, stall_s: float) -> Iterator[None]:
    """While the block runs, a thread kills workers that stand still. Ray starts the group again when one is killed."""
    end = threading.Event()

    def look() -> None:
        while not end.wait(min(5.0, stall_s / 5)):
            for worker in stalled_workers(ray.get(control.workers.remote()), stall_s):
                silent = f", the last sign of life {worker.silent_s:.0f} s ago" if worker.silent_s > stall_s / 2 else ""
                say(
                    f"train     worker {worker.rank} ({worker.name}) made no step for {worker.still_s:.0f} s{silent}: it is "
                    "killed, and training resumes from the newest checkpoint"
                )
                ray.get(control.leave.remote(worker.rank, worker.name))
                ray.kill(worker.actor)

    thread = threading.Thread(target=look, name="stalls", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def run_until_asked(work: Callable[[], object], control: Any) -> bool:
    """Run `work` to its end. Ctrl-C or SIGTERM asks the workers to save and end, which ends the work; a second one ends it at once.

    False when no workers were there to be asked, so that `work` was left. Raises KeyboardInterrupt at the second signal. Outside
    the main thread, where no signal is heard, the work just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        work()
        return True
    # Not in this thread: Ray would take Ctrl-C for itself there, and end the workers without a save.
    done: Future[object] = Future()
    with _signals() as signals:
        threading.Thread(target=_into, args=(done, work), name="train", daemon=True).start()
        asked = False
        while not wait([done], timeout=0.2).done:
            if signals and not asked:
                say("train     asked to stop: saving; once more ends it at once")
                ray.get(control.ask_to_stop.remote())
                asked = True
            if asked and all(worker.silent_s > _GONE_S for worker in ray.get(control.workers.remote())):
                return False  # no group runs, so there is nothing that is not saved
    done.result()
    return True


def _into(done: Future[object], work: Callable[[], object]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is raised where the work is waited for
        done.set_exception(error)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that were sent while the block ran; the second one raises KeyboardInterrupt."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The driver's side of a training that runs: kills a worker that does not move any more, and turns Ctrl-C and SIGTERM into a save
and an end. Knows the workers through `Control` alone.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray

from semantica.distributed.ray_private import WorkerGroupCallback
from semantica.distributed.session import say
from semantica.distributed.training_control import Seen

_GONE_S = 10.0  # workers without a sign of life for so long will not save what they are asked to save [C]


class Groups(WorkerGroupCallback):  # type: ignore[misc]
    """Tells Control when Ray sees a group fail and when it ends one. Runs where Ray's controller of the training runs.

    Ray's public `UserCallback` does not hear of a group that ends because a machine is taken away.
    """

    def __init__(self, control: Any) -> None:
        self.control = control

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Say which workers failed, and of what the first."""
        if errors := worker_group_status.errors:
            first = str(next(iter(errors.values()))).strip() or "no reason given"
            self.control.fail.remote(f"worker {', '.join(map(str, sorted(errors)))}: {first.splitlines()[0][:200]}")

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Say that the group ends."""
        self.control.end.remote()


def culprits(workers: Sequence[Seen], stall_s: float) -> list[Seen]:
    """The workers to kill; none while all move. One that waits for a stopped one lives on: it says that it is there.

    Where all say that they are there, the one with the fewest steps.
    """
    if not any(worker.still_s > stall_s for worker in workers):
        return []
    silent = [worker for worker in workers if worker.silent_s > stall_s / 2]
    return silent or [min(workers, key=lambda worker: (worker.steps, worker.rank))]


class Guard:
    """Looks after the workers while the block runs, in a thread. Ray starts the group again when one is killed."""

    def __init__(self, control: Any, stall_s: float) -> None:
        self.control, self.stall_s = control, stall_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(min(5.0, self.stall_s / 5)):
            workers = ray.get(self.control.look.remote())
            for worker in culprits(workers, self.stall_s):
                silent = f", the last sign of life {worker.silent_s:.0f} s ago" if worker.silent_s > self.stall_s / 2 else ""
                say(
                    f"train     worker {worker.rank} ({worker.name}) made no step for {worker.still_s:.0f} s{silent}: it is "
                    "killed, and training goes on from the newest checkpoint"
                )
                ray.get(self.control.leave.remote(worker.rank, worker.name))
                ray.kill(worker.actor)


def run_until_asked(work: Callable[[], object], control: Any) -> bool:
    """Run `work` to its end. Ctrl-C or SIGTERM asks the workers to save and end, which ends the work; a second one ends it at once.

    False when it was left because no workers were there to be asked. Raises KeyboardInterrupt at the second signal. Not on the main
    thread, where no signal is heard, the work just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        work()
        return True
    # Not in this thread: Ray would take Ctrl-C for itself there, and end the workers without a save.
    done: Future[object] = Future()
    with _heard() as asked:
        threading.Thread(target=_into, args=(done, work), name="train", daemon=True).start()
        told = False
        while not wait([done], timeout=0.2).done:
            if asked and not told:
                say("train     asked to stop: saving; once more ends it at once")
                ray.get(control.ask_to_stop.remote())
                told = True
            if told and all(worker.silent_s > _GONE_S for worker in ray.get(control.look.remote())):
                return False  # no group runs, so there is nothing that is not saved
    done.result()
    return True


def _into(done: Future[object], work: Callable[[], object]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is raised where the work is waited for
        done.set_exception(error)


@contextmanager
def _heard() -> Iterator[list[int]]:
    """The signals that were sent while the block ran; the second one raises KeyboardInterrupt."""
    asked: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

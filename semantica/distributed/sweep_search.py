"""What Ray Tune asks a sweep for, and tells it: the next trial, and how each goes. Both sides keep their knowledge on the disk."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.search import Searcher

from semantica.data import lease
from semantica.data.dataset import read_manifest
from semantica.data.location import location
from semantica.denoiser.sizes import training_flops
from semantica.distributed.session import say
from semantica.distributed.sweep_trial import AGAIN, Shared, free_workers
from semantica.distributed.training_reports import FRECHET
from semantica.sweeps.results import TRAINING, Result, begin, end, read_result, read_results, trial_folder
from semantica.sweeps.search import drawn, num_trials
from semantica.sweeps.settings import SweepConfig
from semantica.sweeps.space import Swept, configured, settings_of, trial_name


class Search(Searcher):  # type: ignore[misc]
    """Gives Tune the trials: those that were begun by earlier starts first, in their order, then what the search chooses next.

    only: of a round of successive halving, the trials that go on, and until: the point at which they pause.
    """

    def __init__(
        self,
        config: SweepConfig,
        swept: Swept,
        shared: Shared,
        *,
        only: Collection[str] | None = None,
        until: int | None = None,
    ) -> None:
        super().__init__(metric=FRECHET, mode="min")
        self.config, self.swept, self.shared, self.only, self.until = config, swept, shared, only, until
        self.names = list(shared.encodings)
        self.total, self.given = num_trials(config, self.names), 0
        self.identities = {name: read_manifest(location(p), "encodings").facts["encoder"] for name, p in shared.encodings.items()}

    def suggest(self, trial_id: str) -> Any:
        """The next trial, whose settings are on the disk before it begins."""
        while self.given < self.total:
            name = self.name(self.given)
            self.given += 1
            if self.only is None or name in self.only:
                return {"trial": name, "shared": self.shared, "until": self.until}
        return Searcher.FINISHED

    def name(self, index: int) -> str:
        """The name of a trial, which is begun if it was not: its settings are on the disk then."""
        before = read_results(Path(self.shared.out))
        known = [result.name for result in before if result.index == index]
        return known[0] if known else self._begun(index, before)

    def _begun(self, index: int, before: list[Result]) -> str:
        choice = drawn(self.config, self.names, index, before)
        settings = settings_of(choice, self.config.space, self.swept, self.names)
        train = configured(self.swept, settings, self.identities[str(settings["encoder"])]).train
        name, steps = trial_name(index, settings), self.config.measure.steps(train.num_steps)
        begin(Path(self.shared.out), index, name, choice, settings, steps, float(training_flops(train.denoiser) * train.batch_size))
        return name

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: what was found is on the disk."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep goes on from the files of its trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Progress(ray.tune.Callback):  # type: ignore[misc]
    """Says what happens, and writes down which trials the scheduler stopped."""

    def __init__(self, out: Path, num_points: int, total: int, until: int | None = None) -> None:
        self.out, self.num_points, self.total, self.until = out, num_points, total, until
        self.errors: dict[str, str] = {}
        self._ended: set[str] = set()  # trials whose processes may still be ending

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if read_result(trial_folder(self.out, name)).status == "unfinished":
            say(f"sweep     trial {name}, of {self.total}")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        if (
            FRECHET in result
            and not result.get(AGAIN)
            and read_result(trial_folder(self.out, trial.config["trial"])).status == "unfinished"
        ):
            say(f"sweep     trial {trial.config['trial']}: point {result['point']} of {self.num_points}, FD {result[FRECHET]:.4g}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        folder = trial_folder(self.out, trial.config["trial"])
        result = read_result(folder)
        self._ended.add(result.name)
        self.errors.pop(result.name, None)
        # Only the scheduler ends a trial that is not trained to its end; one that is killed or fails comes to no such end. It may
        # have been measured at later points, even the last, before it heard of it.
        is_paused = self.until is not None and result.reached >= self.until
        if result.status == "unfinished" and result.reached and not is_paused:
            heard = min(result.reached, int((trial.last_result or {}).get("point", result.reached)))
            last = next(figure for figure in result.figures if figure.point == heard)
            end(folder, "stopped", f"FD {last.frechet:.4g} at point {last.point} is not among the best so far")
            say(f"sweep     trial {result.name}: stopped at point {last.point} of {self.num_points}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended.add(trial.config["trial"])
        path = trial.pickled_error_file
        self.errors[trial.config["trial"]] = _last_line(trial.error_file) if path or trial.error_file else "no reason given"

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.release()

    def release(self, seconds: float = 0.0) -> None:
        """Give back the CPUs and GPUs of trials that ended, once their processes have; wait so long for these.

        Tune ends the driver of a stopped trial, and the controller of its training with it, before that frees the workers.
        """
        deadline = time.monotonic() + seconds
        while self._ended:
            for name in [n for n in self._ended if not lease.is_held(trial_folder(self.out, n) / TRAINING)]:
                free_workers(trial_folder(self.out, name))
                self._ended.discard(name)
            if time.monotonic() >= deadline:
                return
            time.sleep(0.5)


def _last_line(path: str | None) -> str:
    lines = [line for line in Path(path).read_text().splitlines() if line.strip()] if path and Path(path).exists() else []
    return lines[-1].strip() if lines else "no reason given"

"""A sweep: Ray Tune over Ray Train runs, each a training of semantica train. All use the same encodings; a band is a view of them.

In: encodings and scores, the settings of a sweep. Out: a folder with a figure for each trial and point, sweep.html, and the
winner's configuration. Tune's own records are deleted. After a kill the same command resumes from the trials' files
(`semantica.sweeps.results`) and the checkpoints of their trainings, and no figure is measured twice.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from semantica.config import require
from semantica.data import lease
from semantica.data.dataset import Manifest, StageOutput, read_manifest
from semantica.data.location import Location, location
from semantica.denoiser.sizes import training_flops
from semantica.distributed.reports import keep_history
from semantica.distributed.runtime import ClusterConfig, Runtime, device
from semantica.distributed.session import check_resources, run_token, say
from semantica.distributed.stage import StageSession, stage_session
from semantica.distributed.train import check_fits
from semantica.distributed.trial import AGAIN, HELD_OUT_FILE, REFERENCES, Shared, band_view, free_workers, run_trial
from semantica.errors import ConfigError, DataError, Stopped
from semantica.sweeps.halving import Asha, next_round
from semantica.sweeps.plan import SweepPlan, write_plan
from semantica.sweeps.points import FRECHET, make_held_out
from semantica.sweeps.ranking import winner
from semantica.sweeps.report import BEST, PAGE, REPORT, write_report
from semantica.sweeps.results import FIGURES, TRAINING, Result, begin, end, read_result, read_results, trial_folder
from semantica.sweeps.search import choose, num_trials
from semantica.sweeps.settings import SweepConfig
from semantica.sweeps.space import Swept, combinations, grid, settings_of, trial_config, trial_name
from semantica.tracking import Place, resolve_uri, send_what_is_left
from semantica.training.start import InitialWeights, initial_weights

_ENDING_S = 15.0  # the longest wait for the processes of stopped trials [C]
_TUNE = "ray"  # folder of Tune's own records
# The driver of a trial holds no CPU, so all CPUs are for workers and trials do not block each other. It runs on the head's machine,
# which outlives machines that come and go. Every head has 1 of this resource.
_DRIVER = {"node:__internal_head__": 0.0001}


def sweep(
    plan: SweepPlan,
    *,
    out: Path,
    runtime: Runtime,
    max_concurrent: int | None = None,
    command: str = "",
) -> Manifest:
    """Run the trials of `plan` into `out` and find the best. Returns the manifest of the sweep.

    max_concurrent: trials at once. The default, which is also the maximum, is the number of trials whose workers fit into the
    cluster together. Raises Stopped after Ctrl-C or SIGTERM; called again, the sweep resumes.
    """
    require(max_concurrent is None or max_concurrent > 0, "max_concurrent", "1 or more", max_concurrent)
    config, band, cluster = plan.sweep, plan.band, runtime.cluster
    places = {name: location(place) for name, place in plan.encodings.items()}
    scored = {name: location(place) for name, place in plan.scores.items()}
    # Each point shows samples already; samples drawn by the training would cost time and show the same.
    swept = Swept(train=replace(plan.train, sample_every=None), band=band)
    manifests = {name: read_manifest(place, "encodings") for name, place in places.items()}
    initial = initial_weights(plan.train)
    inputs = check(config, swept, manifests, scored, cluster, initial)
    folder = out.absolute()
    stage = StageOutput(folder, "sweep", {"sweep": config, **vars(swept)}, inputs)
    with stage_session("sweep", stage, runtime, None) as session:
        if session.done is not None:
            return session.done
        session.start_ray()
        write_plan(plan, folder)
        runtime = replace(
            runtime, fresh=False, tracking=replace(runtime.tracking, uri=resolve_uri(runtime.tracking, folder.parent))
        )
        check_resources(cluster, gpus=max(cluster.gpus_per_actor, float(cluster.num_workers if cluster.use_gpu else 0)))
        shared = Shared(
            out=folder,
            swept=swept,
            measure=config.measure,
            encodings=places,
            scores=scored,
            identities={name: manifest.facts["encoder"] for name, manifest in manifests.items()},
            initial=initial,
            runtime=runtime,
            parent=session.run,
        )
        for name in places:
            for low, high in () if config.space.band_low_range else config.space.band or ((band.low, band.high),):
                band_view(shared, name, replace(band, low=low, high=high), swept.train.num_lanes)
        _hold_out(shared, plan.train.denoiser.resolution_px, cluster)
        room = concurrency(cluster, ray.cluster_resources())
        search = Search(config, shared)
        rounds = _halving if config.stopping == "halving" else _tune
        errors = rounds(config, search, shared, cluster, min(max_concurrent or room, room))
        results = read_results(folder)
        _end_tracking(results, folder, runtime)
        _check_ended(results, errors, search.total)
        shown = write_report(folder, config, plan.swept, plan.encodings, command)
        return _finish(session, stage, results, shown)


def check(
    config: SweepConfig,
    swept: Swept,
    encodings: Mapping[str, Manifest],
    scores: Mapping[str, Location],
    cluster: ClusterConfig,
    initial: InitialWeights | None = None,
) -> dict[str, str]:
    """The hashes of the inputs. Raises ConfigError or DataError for trials that could not be trained, before anything starts."""
    if not encodings or set(encodings) != set(scores):
        raise ConfigError(f"--scores: expected those of {', '.join(encodings) or 'at least one encoder'}, got {', '.join(scores)}")
    inputs: dict[str, str] = {}
    for name, manifest in encodings.items():
        scored = read_manifest(scores[name], "scores")
        if scored.inputs["encodings"] != manifest.hash:
            raise DataError(
                f"sweep: {scores[name]} holds the scores of other encodings than those of {name!r}; run semantica pairs on these"
            )
        inputs |= {f"encodings.{name}": manifest.hash, f"scores.{name}": scored.hash}
    names = list(encodings)
    config.measure.steps(swept.train.num_steps)
    for drawn in grid(config.space, names) if config.search == "grid" else combinations(config.space, names):
        settings = settings_of(drawn, config.space, swept, names)
        encoded = encodings[str(settings["encoder"])]
        chosen = trial_config(swept, settings, encoded.facts["encoder"])
        check_fits(chosen.train, encoded, cluster)
        if initial is not None:
            initial.check_fit(chosen.train.denoiser)
    return inputs


def concurrency(cluster: ClusterConfig, resources: Mapping[str, float]) -> int:
    """How many trials fit into the cluster with all their workers; at least 1, since a cluster that grows may start empty."""
    needed = {"CPU": cluster.num_workers * cluster.cpus_per_worker, "GPU": float(cluster.num_workers if cluster.use_gpu else 0)}
    if cluster.tpu_type:
        return 1  # slices are reserved one by one: two trials could each hold half of the slices they need
    room = [int(resources.get(name, 0.0) // amount) for name, amount in needed.items() if amount > 0]
    return max(1, min(room, default=1))


def _halving(config: SweepConfig, search: Search, shared: Shared, cluster: ClusterConfig, max_concurrent: int) -> dict[str, str]:
    """Run the trials in rounds, each round to its point. Ends after a round with unfinished trials. Returns errors by trial."""
    out = shared.out
    for index in range(search.total):
        search.name(index)
    while True:
        measure = config.measure
        now = next_round(
            read_results(out),
            num_points=measure.num_points,
            grace_points=config.grace_points,
            reduction_factor=config.reduction_factor,
        )
        for loser in now.losers:
            end(trial_folder(out, loser.name), "stopped", loser.reason)
        if not now.names:
            return {}
        say(f"sweep     {len(now.names)} trials to {'their end' if now.until is None else f'point {now.until}'}")
        one = Search(config, shared, only=now.names, until=now.until)
        errors = _tune(config, one, shared, cluster, max_concurrent)
        if any(_is_behind(result, now.until) for result in read_results(out) if result.name in now.names):
            return errors


def _is_behind(result: Result, until: int | None) -> bool:
    return result.status == "unfinished" and (until is None or result.reached < until)


def _tune(config: SweepConfig, search: Search, shared: Shared, cluster: ClusterConfig, max_concurrent: int) -> dict[str, str]:
    """Run the trials. Returns the errors by trial. Raises Stopped when a signal asked for the end."""
    out = shared.out
    shutil.rmtree(out / _TUNE, ignore_errors=True)
    progress = Progress(out, config.measure.num_points, search.total, search.until)
    # A trial's process keeps the working directory of the sweep, so that relative places mean the same there.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # no copies of the figures in CSV, JSON and TensorBoard files
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that diverges before its first point has no figure
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints a header even when verbose is 0
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(run_trial, ray.tune.PlacementGroupFactory([_DRIVER])),
        tune_config=ray.tune.TuneConfig(
            metric=FRECHET,
            mode="min",
            search_alg=search,
            scheduler=scheduler(config),
            num_samples=search.total if search.only is None else len(search.only),
            max_concurrent_trials=max_concurrent,
            trial_dirname_creator=_trial_folder,
        ),
        run_config=ray.tune.RunConfig(
            name=_TUNE,
            storage_path=str(out),
            failure_config=ray.tune.FailureConfig(max_failures=cluster.max_failures),
            callbacks=[progress],
            verbose=0,
        ),
    )
    with _sigterm_as_sigint():
        tuner.fit()
    progress.release(_ENDING_S)
    shutil.rmtree(out / _TUNE, ignore_errors=True)
    return progress.errors


def _trial_folder(trial: Any) -> str:
    return str(trial.config["trial"])


class Search(Searcher):  # type: ignore[misc]
    """Gives Tune the trials: first those that earlier starts began, in their order, then new ones chosen by the search.

    only: the trials of a round of successive halving. until: the point at which they pause.
    """

    def __init__(
        self,
        config: SweepConfig,
        shared: Shared,
        *,
        only: Collection[str] | None = None,
        until: int | None = None,
    ) -> None:
        super().__init__(metric=FRECHET, mode="min")
        self.config, self.shared, self.only, self.until = config, shared, only, until
        self.names = list(shared.encodings)
        self.total, self.given = num_trials(config, self.names), 0

    def suggest(self, trial_id: str) -> Any:
        """The next trial. Its settings are on disk before it starts."""
        while self.given < self.total:
            name = self.name(self.given)
            self.given += 1
            if self.only is None or name in self.only:
                return {"trial": name, "shared": self.shared, "until": self.until}
        return Searcher.FINISHED

    def name(self, index: int) -> str:
        """The name of the trial of this index. Writes the trial's settings to disk unless they are there."""
        before = read_results(self.shared.out)
        known = [result.name for result in before if result.index == index]
        return known[0] if known else self._begin(index, before)

    def _begin(self, index: int, before: list[Result]) -> str:
        choice = choose(self.config, self.names, index, before)
        settings = settings_of(choice, self.config.space, self.shared.swept, self.names)
        train = trial_config(self.shared.swept, settings, self.shared.identities[str(settings["encoder"])]).train
        name, steps = trial_name(index, settings), self.config.measure.steps(train.num_steps)
        begin(self.shared.out, index, name, choice, settings, steps, float(training_flops(train.denoiser) * train.batch_size))
        return name

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: the figures are on disk."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from the files of its trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as `save`."""


class Progress(ray.tune.Callback):  # type: ignore[misc]
    """Prints the progress, and writes to disk which trials the scheduler stopped."""

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
        # Only the scheduler completes a trial that is not finished: a trial that is killed or fails does not come here. The trial
        # may have measured later points, even the last one, before the decision reached it.
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
        """Free the CPUs and GPUs of ended trials whose processes have exited. Waits up to `seconds` for the processes.

        Tune ends the driver of a stopped trial, and with it the training's controller, before the controller frees the workers.
        """
        deadline = time.monotonic() + seconds
        while self._ended:
            for name in [n for n in self._ended if not lease.is_held(trial_folder(self.out, n) / TRAINING)]:
                free_workers(trial_folder(self.out, name))
                self._ended.discard(name)
            if time.monotonic() >= deadline:
                return
            time.sleep(0.5)


class AshaScheduler(FIFOScheduler):  # type: ignore[misc]
    """Tells Tune the decisions of `Asha`.

    After a restart, trials report their earlier figures again. Other trials are compared with these, but the reporting trial is not
    stopped by them.
    """

    def __init__(self, asha: Asha) -> None:
        super().__init__()
        self.asha = asha

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        stops = FRECHET in result and self.asha.stops(trial.config["trial"], int(result["point"]), float(result[FRECHET]))
        decision: str = TrialScheduler.STOP if stops and not result.get(AGAIN) else TrialScheduler.CONTINUE
        return decision


def scheduler(config: SweepConfig) -> TrialScheduler:
    """The scheduler that stops trials early, or none."""
    asha = Asha(config.measure.num_points, config.grace_points, config.reduction_factor)
    return AshaScheduler(asha) if config.stopping == "asha" and asha.rungs else FIFOScheduler()


@contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    """Make SIGTERM act as Ctrl-C: Tune ends its trials, and the sweep says how to resume."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _hold_out(shared: Shared, resolution_px: int, cluster: ClusterConfig) -> None:
    if not (shared.out / HELD_OUT_FILE).exists():
        task = ray.remote(num_cpus=cluster.cpus_per_actor, num_gpus=cluster.gpus_per_actor)(_make_held_out)
        ray.get(task.remote(shared, resolution_px))


def _make_held_out(shared: Shared, resolution_px: int) -> None:
    encodings = list(shared.encodings.values())
    held_out = make_held_out(shared.measure, encodings, resolution_px, shared.out / REFERENCES, device())
    held_out.keep(shared.out / HELD_OUT_FILE)


def _end_tracking(results: list[Result], out: Path, runtime: Runtime) -> None:
    """Send the records of stopped trials, whose processes were ended early. The history of unfinished trials is kept first."""
    deadline = time.monotonic() + _ENDING_S
    for result in results:
        training = trial_folder(out, result.name) / TRAINING
        place = Place.beside(training, runtime.tracking, run_token(training, make=False))
        if result.status == "unfinished":
            keep_history(training, place.runs())
        send_what_is_left(place.root, seconds=runtime.tracking.flush_s)
        while place.root.is_dir() and time.monotonic() < deadline:  # the trial's process holds the spool and is just ending
            time.sleep(0.5)
            send_what_is_left(place.root, seconds=runtime.tracking.flush_s)


def _check_ended(results: list[Result], errors: Mapping[str, str], total: int) -> None:
    missing = [result.name for result in results if result.status == "unfinished"]
    if failed := [name for name in missing if name in errors]:
        raise DataError(f"sweep: trial {failed[0]} failed: {errors[failed[0]]}; run the same command to try it again")
    if missing or len(results) < total:
        done = len(results) - len(missing)
        raise Stopped(f"sweep: stopped as asked, {done} of {total} trials are done; run the same command to resume")
    if winner(results) is None:
        raise DataError(f"sweep: none of {total} trials came to its end; {results[0].name}: {results[0].reason}")


def _finish(session: StageSession, stage: StageOutput, results: list[Result], shown: Mapping[str, float]) -> Manifest:
    best = winner(results)
    assert best is not None
    assert best.final is not None
    out, run = Path(str(stage.folder)), session.run
    run.metrics({"frechet_final": best.final, **shown})
    run.tags({"best": best.name})
    for name in (PAGE, REPORT, BEST):
        run.artifact(out / name)
    counts = {
        "num_trials": len(results),
        **{f"num_{s}": sum(r.status == s for r in results) for s in ("stopped", "diverged", "failed")},
    }
    session.summary = f"{len(results)} trials, {counts['num_stopped']} stopped early; best {best.name}, FD {best.final:.4g}"
    session.notes.append(f"semantica train --config {out / BEST} --out OUT trains the best again; see {out / PAGE}")
    folders = [trial_folder(out, result.name) for result in results]
    paths = [path for folder in folders for path in (*folder.glob("*.json"), *folder.glob(f"{FIGURES}/*")) if path.name[0] != "."]
    files = sorted(str(path.relative_to(out)) for path in paths)
    return stage.finish(counts, {"best": best.name, FRECHET: best.final}, [*files, PAGE, REPORT, BEST])


def _last_line(path: str | None) -> str:
    lines = [line for line in Path(path).read_text().splitlines() if line.strip()] if path and Path(path).exists() else []
    return lines[-1].strip() if lines else "no reason given"

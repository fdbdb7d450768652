"""A sweep: Ray Tune over real Ray Train runs, each the training of jobs.train, all on the same encodings; a band is a view.

In: encodings and scores, the settings of a sweep. Out: a folder with a figure for each trial and point, sweep.html, and the
winner's configuration. Tune's own records are thrown away: whatever is killed, the same command goes on from its trials' files
(`semantica.sweeps.results`) and the checkpoints of their trainings, and each figure is measured once.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.tune
import torch
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from semantica.config import from_dict, require, to_dict
from semantica.data.dataset import Manifest, StageOutput, read_manifest
from semantica.data.location import Location, location, uri
from semantica.distributed.session import check_resources, say
from semantica.distributed.stage import StageSession, stage_session
from semantica.distributed.sweep_search import Progress, Search
from semantica.distributed.sweep_trial import AGAIN, HELD_OUT_FILE, REFERENCES, Shared, band_view, check_lanes, run_trial
from semantica.distributed.train import check_fits
from semantica.distributed.training_reports import FRECHET
from semantica.errors import ConfigError, DataError, Stopped
from semantica.runtime import ClusterConfig, Runtime
from semantica.sweeps.halving import next_round
from semantica.sweeps.measuring import make_held_out
from semantica.sweeps.plan import SweepPlan, keep
from semantica.sweeps.ranking import winner
from semantica.sweeps.report import BEST, PAGE, REPORT, write_report
from semantica.sweeps.results import FIGURES, TRAINING, Result, end, read_results, trial_folder
from semantica.sweeps.search import drawn, num_trials
from semantica.sweeps.settings import MeasureConfig, SweepConfig
from semantica.sweeps.space import Swept, configured, settings_of
from semantica.tracking import Place, resolve_uri, send_what_is_left

_ENDING_S = 15.0  # that processes of stopped trials may take to end [C]
_TUNE = "ray"  # folder of Tune's own records
# The driver of a trial holds no CPU: all are for workers, and no trials wait for each other. It is on the head's machine, which
# outlives those that come and go; every head has one of this resource.
_DRIVER = {"node:__internal_head__": 0.0001}


def sweep(
    plan: SweepPlan,
    *,
    out: Path,
    runtime: Runtime,
    max_concurrent: int | None = None,
    command: str = "",
) -> Manifest:
    """Try what `plan` says into `out`, and say which trial wins. Returns the manifest of the sweep.

    max_concurrent: trials at once; the default, and the most, is as many as the cluster has room for the workers of. Raises Stopped
    when Ctrl-C or SIGTERM asked for it: called again, it goes on.
    """
    require(max_concurrent is None or max_concurrent > 0, "max_concurrent", "1 or more", max_concurrent)
    config, band, cluster = plan.sweep, plan.band, runtime.cluster
    places = {name: location(place) for name, place in plan.encodings.items()}
    scored = {name: location(place) for name, place in plan.scores.items()}
    # The measuring shows samples; what a training would draw beside them costs time and says the same.
    swept = Swept(train=replace(plan.train, sample_every=None), band=band)
    inputs = check(config, swept, places, scored, cluster)
    folder = out.absolute()
    stage = StageOutput(folder, "sweep", {"sweep": config, **vars(swept)}, inputs)
    with stage_session("sweep", stage, runtime, None) as session:
        if session.done is not None:
            return session.done
        session.start_ray()
        keep(plan, folder)
        runtime = replace(
            runtime, fresh=False, tracking=replace(runtime.tracking, uri=resolve_uri(runtime.tracking, folder.parent))
        )
        check_resources(cluster, gpus=max(cluster.gpus_per_actor, float(cluster.num_workers if cluster.use_gpu else 0)))
        shared = Shared(
            out=str(folder),
            swept=to_dict(swept),
            measure=to_dict(config.measure),
            encodings={name: uri(place) for name, place in places.items()},
            scores={name: uri(place) for name, place in scored.items()},
            runtime=to_dict(runtime),
            parent=session.run,
        )
        for name in places:
            for low, high in () if config.space.band_low_range else config.space.band or ((band.low, band.high),):
                check_lanes(band_view(shared, name, replace(band, low=low, high=high)), swept.train)
        _hold_out(shared, plan.train.denoiser.resolution_px, cluster)
        room = concurrency(cluster, ray.cluster_resources())
        search = Search(config, swept, shared)
        rounds = _halving if config.stopping == "halving" else _tune
        errors = rounds(config, search, shared, cluster, min(max_concurrent or room, room))
        results = read_results(folder)
        _end_tracking(results, folder, runtime)
        _check_ended(results, errors, search.total)
        shown = write_report(folder, config, plan.swept, shared.encodings, command)
        return _finish(session, stage, results, shown)


def check(
    config: SweepConfig, swept: Swept, encodings: Mapping[str, Location], scores: Mapping[str, Location], cluster: ClusterConfig
) -> dict[str, str]:
    """The hashes of the inputs. Raises ConfigError or DataError for what could not be trained, before anything starts."""
    if not encodings or set(encodings) != set(scores):
        raise ConfigError(f"--scores: expected those of {', '.join(encodings) or 'at least one encoder'}, got {', '.join(scores)}")
    inputs: dict[str, str] = {}
    identities: dict[str, Any] = {}
    for name, place in encodings.items():
        manifest, scored = read_manifest(place, "encodings"), read_manifest(scores[name], "scores")
        if scored.inputs["encodings"] != manifest.hash:
            raise DataError(f"sweep: {scores[name]} holds the scores of other encodings than {place}; run jobs.pairs on these")
        inputs |= {f"encodings.{name}": manifest.hash, f"scores.{name}": scored.hash}
        identities[name] = manifest.facts["encoder"]
    names = list(encodings)
    config.measure.steps(swept.train.num_steps)
    for index in range(num_trials(config, names) if config.search == "grid" else 1):
        settings = settings_of(drawn(config, names, index), config.space, swept, names)
        chosen = configured(swept, settings, identities[str(settings["encoder"])])
        check_fits(chosen.train, read_manifest(encodings[str(settings["encoder"])], "encodings"), cluster)
    return inputs


def concurrency(cluster: ClusterConfig, resources: Mapping[str, float]) -> int:
    """How many trials have room for all their workers at once; at least 1: a cluster that grows may have none yet."""
    needed = {"CPU": cluster.num_workers * cluster.cpus_per_worker, "GPU": float(cluster.num_workers if cluster.use_gpu else 0)}
    if cluster.tpu_type:
        return 1  # slices are reserved one after the other: two trials could each hold half of what they need
    room = [int(resources.get(name, 0.0) // amount) for name, amount in needed.items() if amount > 0]
    return max(1, min(room, default=1))


def _halving(config: SweepConfig, search: Search, shared: Shared, cluster: ClusterConfig, max_concurrent: int) -> dict[str, str]:
    """Run the trials round by round, each to its point; a round that is cut is the last. Returns what went wrong, by trial."""
    out = Path(shared.out)
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
        one = Search(config, search.swept, shared, only=now.names, until=now.until)
        errors = _tune(config, one, shared, cluster, max_concurrent)
        if any(_is_behind(result, now.until) for result in read_results(out) if result.name in now.names):
            return errors


def _is_behind(result: Result, until: int | None) -> bool:
    return result.status == "unfinished" and (until is None or result.reached < until)


def _tune(config: SweepConfig, search: Search, shared: Shared, cluster: ClusterConfig, max_concurrent: int) -> dict[str, str]:
    """Run the trials. Returns what went wrong, by trial. Raises Stopped when a signal asked for the end."""
    out = Path(shared.out)
    shutil.rmtree(out / _TUNE, ignore_errors=True)
    progress = Progress(out, config.measure.num_points, search.total, search.until)
    # A trial's process stays in the directory in which the sweep was started: relative places mean the same there.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # no copies of the figures in formats nobody asked for
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that diverges before its first point has no figure
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # which prints a header whatever verbose says
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


class _Asha(ASHAScheduler):  # type: ignore[misc]
    """ASHA to which trials tell again, after a restart, what was measured before: others are compared with it, they go on."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if result.get(AGAIN) else decision


def scheduler(config: SweepConfig) -> TrialScheduler:
    """What stops trials early. ASHA decides at no point that is the last one: stopped there, a training would not be saved."""
    most = config.measure.num_points - 1 + 1e-6  # a rung that is not a whole number is looked at at the point after it
    if config.stopping != "asha" or config.grace_points > most:
        return FIFOScheduler()
    return _Asha(
        time_attr="point",
        max_t=most,
        grace_period=config.grace_points,
        reduction_factor=config.reduction_factor,
        stop_last_trials=False,
    )


@contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does: Tune ends its trials, and the sweep says how to go on."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _hold_out(shared: Shared, resolution_px: int, cluster: ClusterConfig) -> None:
    path = Path(shared.out) / HELD_OUT_FILE
    if not path.exists():
        task = ray.remote(num_cpus=cluster.cpus_per_actor, num_gpus=cluster.gpus_per_actor)(_make_held_out)
        ray.get(task.remote(shared, resolution_px))


def _make_held_out(shared: Shared, resolution_px: int) -> None:
    out = Path(shared.out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    places = [location(place) for place in shared.encodings.values()]
    measure = from_dict(MeasureConfig, shared.measure)
    make_held_out(measure, places, resolution_px, out / REFERENCES, device).keep(out / HELD_OUT_FILE)


def _end_tracking(results: list[Result], out: Path, runtime: Runtime) -> None:
    """Send what stopped trials left: their processes were ended in the middle."""
    deadline = time.monotonic() + _ENDING_S
    for result in results:
        place = Place.beside(trial_folder(out, result.name) / TRAINING, runtime.tracking)
        send_what_is_left(place.root, seconds=runtime.tracking.flush_s)
        while place.root.is_dir() and time.monotonic() < deadline:  # its process, which has it, ends in this moment
            time.sleep(0.5)
            send_what_is_left(place.root, seconds=runtime.tracking.flush_s)


def _check_ended(results: list[Result], errors: Mapping[str, str], total: int) -> None:
    missing = [result.name for result in results if result.status == "unfinished"]
    if failed := [name for name in missing if name in errors]:
        raise DataError(f"sweep: trial {failed[0]} failed: {errors[failed[0]]}; run the same command to try it again")
    if missing or len(results) < total:
        done = len(results) - len(missing)
        raise Stopped(f"sweep: stopped as asked, {done} of {total} trials are done; the same command goes on from there")
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
    session.notes.append(f"python -m jobs.train --config {out / BEST} --out OUT trains it again; see {out / PAGE}")
    folders = [trial_folder(out, result.name) for result in results]
    kept = [path for folder in folders for path in (*folder.glob("*.json"), *folder.glob(f"{FIGURES}/*")) if path.name[0] != "."]
    files = sorted(str(path.relative_to(out)) for path in kept)
    return stage.finish(counts, {"best": best.name, FRECHET: best.final}, [*files, PAGE, REPORT, BEST])

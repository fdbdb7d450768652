"""One trial of a sweep, in the process that Ray Tune gives it: report the figures already on disk to Tune, then resume training.

The process holds no CPU: it waits for the workers of its training, a Ray Train run as semantica train starts it. Ray Tune kills
the process when ASHA stops the trial, and starts it again when it dies. In both cases the files of the trial say what was done.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.tune
from ray.train.collective import broadcast_from_rank_zero
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from semantica.data import lease
from semantica.data.durable import write_atomically
from semantica.data.location import Location
from semantica.denoiser.uvit import UViT
from semantica.distributed.ray_private import PlacementGroupID
from semantica.distributed.reports import Report
from semantica.distributed.runtime import Runtime
from semantica.distributed.train import TrainingHook, train
from semantica.distributed.worker import Worker
from semantica.errors import ConfigError, DataError, Stopped
from semantica.pairs.draw import deal_lanes
from semantica.pairs.loader import SelectedPairs, open_pairs
from semantica.pairs.selection import BandConfig, EmptyBandError, select, selection_stage
from semantica.sweeps.points import PointMeter, Points, tune_values
from semantica.sweeps.results import TRAINING, Result, end, read_result, selection_folder, trial_folder
from semantica.sweeps.settings import MeasureConfig
from semantica.sweeps.space import Swept, trial_config
from semantica.tracking import Run
from semantica.training.ema import Ema
from semantica.training.parallel import whole
from semantica.training.start import InitialWeights, TrainingInputs
from semantica.training.watch import NonFiniteError

HELD_OUT_FILE, REFERENCES = "held_out.json", "references"
AGAIN = "again"  # in a report to Tune: an earlier start of the sweep measured this figure
_PLACEMENT = ".placement"  # in a trial's folder: the id of its workers' placement group, which may outlive the trial
_ORPHAN_S = 120.0  # the longest wait for a training whose driver was killed [C]


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep share. encodings, scores, identities: by the name of their encoder; the first encoder measures."""

    out: Path
    swept: Swept
    measure: MeasureConfig
    encodings: Mapping[str, Location]
    scores: Mapping[str, Location]
    identities: Mapping[str, Mapping[str, Any]]
    initial: InitialWeights | None
    runtime: Runtime
    parent: Run


def band_view(shared: Shared, encoder: str, band: BandConfig, num_lanes: int) -> SelectedPairs:
    """The pairs of this encoder in this band. The selection is made, by reading one small column, if it does not exist.

    Raises EmptyBandError when no pair lies in the band, and ConfigError when those that do are in too few row groups for the lanes.
    """
    folder, scores = selection_folder(shared.out, encoder, band), shared.scores[encoder]
    stage = selection_stage(scores, band, folder)
    if stage.finished() is None:
        with stage.held():
            if stage.open() is None:
                select(stage, scores, band)
    pairs = open_pairs(shared.encodings[encoder], folder)
    deal_lanes(pairs.selection.row_groups, num_lanes)
    return pairs


class UntrainableBandError(Exception):
    """A band that a search drew keeps too few pairs to train on."""


def run_trial(config: dict[str, Any]) -> None:
    """Run one trial; Ray Tune calls this. config holds the trial's name, `Shared`, and the point to pause at, if any.

    A trial that diverges or cannot be trained with its settings ends as "diverged" or "failed".
    """
    shared: Shared = config["shared"]
    until: int | None = config["until"]
    folder = trial_folder(shared.out, config["trial"])
    result = read_result(folder)
    for figure in result.figures:
        ray.tune.report(tune_values(figure, len(result.steps)) | {AGAIN: True})
    if result.status != "unfinished":
        return
    _wait_for_orphans(folder / TRAINING)
    free_workers(folder)
    try:
        _train(shared, folder, result, until)
    except Stopped:
        if until is None:  # only a pause at a point stops a trial this way
            raise
    except NonFiniteError as error:
        end(folder, "diverged", str(error))
    except UntrainableBandError as error:
        end(folder, "failed", str(error))


def _train(shared: Shared, folder: Path, result: Result, until: int | None) -> None:
    encoder = str(result.settings["encoder"])
    chosen = trial_config(shared.swept, result.settings, shared.identities[encoder])
    try:
        pairs = band_view(shared, encoder, chosen.band, chosen.train.num_lanes)
    except (EmptyBandError, ConfigError) as error:
        raise UntrainableBandError(str(error)) from None
    points = Points(
        folder=folder,
        steps=result.steps,
        settings=shared.measure,
        held_out=shared.out / HELD_OUT_FILE,
        references=shared.out / REFERENCES,
        measured_by=next(iter(shared.encodings.values())),
        pause=None if until is None else result.steps[until - 1],
    )
    train(
        chosen.train,
        TrainingInputs(pairs, shared.initial),
        out=folder / TRAINING,
        runtime=shared.runtime,
        parent=shared.parent,
        hook=TrainingHook(folder.name, result.settings, Measuring(points), callbacks=(TuneReportCallback(),)),
    )
    missing = set(range(1, len(points.steps) + 1)) - {figure.point for figure in read_result(folder).figures}
    if missing:
        raise DataError(
            f"sweep: {folder} was trained, but the figure of point {min(missing)} is missing; delete the folder and run again"
        )


@dataclass(frozen=True)
class Measuring:
    """The training hook of a trial: at each point the first worker measures, and all workers report the figure to Tune."""

    points: Points

    def __call__(self, worker: Worker) -> MeasuringWorker:
        """The hook of one worker."""
        return MeasuringWorker(self.points, worker)


class MeasuringWorker:
    """One worker's part in the points of a trial; a `StepHook`."""

    def __init__(self, points: Points, worker: Worker) -> None:
        self.points, self.worker, self.pause = points, worker, points.pause
        self.meter = PointMeter(points, worker.config, worker.encodings, worker.tokens_of, worker.device, is_new=worker.is_new)
        if worker.rank == 0:
            write_atomically(points.folder / _PLACEMENT, get_current_placement_group().id.hex().encode())

    def __call__(self, step: int, network: UViT, ema: Ema) -> None:
        """At a point, measure the figure unless it is on disk, and report it. All workers call this and wait for the first."""
        if step not in self.points.steps:
            return
        is_first = self.worker.rank == 0
        # Sharded state is gathered by all workers together, so all must know whether to gather.
        is_known = broadcast_from_rank_zero(is_first and self.points.read_figure(step) is not None)
        average = {} if is_known else whole(ema.values, keep=is_first)
        figures: dict[str, Any] = {}
        if is_first:
            figure = self.meter.figure(step, average)
            figures = tune_values(figure, len(self.points.steps))
            self.worker.report(Report(step, figures, self.points.picture(figure)))
        ray.train.report(figures)  # Ray Train takes the first worker's figures


def _wait_for_orphans(folder: Location) -> None:
    """Wait until no process of an earlier start still writes to `folder`; such a process exits shortly after its driver."""
    deadline = time.monotonic() + _ORPHAN_S
    while lease.is_held(folder) and time.monotonic() < deadline:
        time.sleep(0.5)


def free_workers(folder: Path) -> None:
    """Free the CPUs and GPUs of a trial whose processes ended without freeing them.

    Ray Train should remove the workers' placement group, but needs the dashboard for it; without a dashboard the group would stay.
    """
    path = folder / _PLACEMENT
    if path.exists():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(path.read_text()))))
        path.unlink()

"""One trial of a sweep, in the process that Ray Tune gives it: what is on the disk is told again, and the training goes on.

The process holds no CPU: it waits for the workers of its training, which is that of jobs.train, a real Ray Train run. It is killed
when ASHA stops the trial, and started again when it dies; either way the files of the trial say what was done.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

from semantica.config import from_dict
from semantica.data import lease
from semantica.data.dataset import read_manifest
from semantica.data.location import Location, location
from semantica.distributed.ray_private import PlacementGroupID
from semantica.distributed.train import train
from semantica.distributed.training_figures import PLACEMENT, Trial, Watch, reported
from semantica.errors import ConfigError, DataError, Stopped
from semantica.pairs.draw import deal_lanes
from semantica.pairs.selection import BandConfig, EmptyBandError, RowGroup, select, selection_stage
from semantica.runtime import Runtime
from semantica.sweeps.results import TRAINING, end, read_result, selection_folder, trial_folder
from semantica.sweeps.settings import MeasureConfig
from semantica.sweeps.space import Setting, configured
from semantica.sweeps.space import Swept as SweptConfig
from semantica.tracking import Run
from semantica.training.recipe import TrainConfig
from semantica.training.watch import NonFiniteError

HELD_OUT_FILE, REFERENCES = "held_out.json", "references"
AGAIN = "again"  # in what Tune hears: this was measured by an earlier start of the sweep
_ORPHAN_S = 120.0  # that a training whose driver was killed may take to end [C]


@dataclass(frozen=True)
class Shared:
    """What the trials of a sweep have in common, as plain data. encodings, scores: URIs by the name of their encoder."""

    out: str
    swept: dict[str, Any]
    measure: dict[str, Any]
    encodings: dict[str, str]
    scores: dict[str, str]
    runtime: dict[str, Any]
    parent: Run


def band_view(shared: Shared, encoder: str, band: BandConfig) -> Path:
    """The selection of this band over the scores of this encoder, made when it is not there: one small column is read."""
    folder, scores = selection_folder(Path(shared.out), encoder, band), location(shared.scores[encoder])
    stage = selection_stage(scores, band, folder)
    if stage.finished() is None:
        with stage.held():
            if stage.open() is None:
                select(stage, scores, band)
    return folder


class UntrainableBandError(Exception):
    """A band that a search drew keeps too few pairs to train on."""


def check_lanes(selection: Location, train: TrainConfig) -> None:
    """Raise ConfigError when a selection has pairs in too few row groups to fill the lanes."""
    groups = read_manifest(selection, "selection").facts["row_groups"]
    deal_lanes([RowGroup(*group) for group in groups], train.num_lanes)


def run_trial(config: dict[str, Any]) -> None:
    """What Ray Tune runs: config holds the trial's name, `Shared`, and the point to pause at, if any.

    A trial that cannot be trained with its settings ends so.
    """
    shared: Shared = config["shared"]
    folder = trial_folder(Path(shared.out), config["trial"])
    result = read_result(folder)
    for figure in result.figures:
        ray.tune.report(reported(figure, len(result.steps)) | {AGAIN: True})
    if result.status != "unfinished":
        return
    _wait_for_orphans(folder / TRAINING)
    free_workers(folder)
    try:
        _train(shared, folder, result.settings, config["until"])
    except Stopped:
        if config["until"] is None:  # nobody else asks a trial to stop
            raise
    except NonFiniteError as error:
        end(folder, "diverged", str(error))
    except UntrainableBandError as error:
        end(folder, "failed", str(error))


def _train(shared: Shared, folder: Path, settings: dict[str, Setting], until: int | None) -> None:
    encoder = str(settings["encoder"])
    encodings, first = location(shared.encodings[encoder]), next(iter(shared.encodings.values()))
    identity = read_manifest(encodings, "encodings").facts["encoder"]
    chosen = configured(from_dict(SweptConfig, shared.swept), settings, identity)
    try:
        selection = band_view(shared, encoder, chosen.band)
        check_lanes(selection, chosen.train)
    except (EmptyBandError, ConfigError) as error:
        raise UntrainableBandError(str(error)) from None
    out, measure = Path(shared.out), from_dict(MeasureConfig, shared.measure)
    steps = read_result(folder).steps
    watch = Watch(
        folder=str(folder),
        steps=steps,
        settings=measure,
        held_out=str(out / HELD_OUT_FILE),
        references=str(out / REFERENCES),
        measured_by=first,
        pause=None if until is None else steps[until - 1],
    )
    train(
        chosen.train,
        encodings=encodings,
        selection=selection,
        out=folder / TRAINING,
        runtime=from_dict(Runtime, shared.runtime),
        parent=shared.parent,
        trial=Trial(name=folder.name, settings=settings, watch=watch, callbacks=(TuneReportCallback(),)),
    )
    missing = [p for p in range(1, len(watch.steps) + 1) if p not in {f.point for f in read_result(folder).figures}]
    if missing:
        raise DataError(
            f"sweep: {folder} was trained, but the figure of point {missing[0]} is gone; delete the folder and run again"
        )


def _wait_for_orphans(folder: Location) -> None:
    """Come back when no process of an earlier start trains into the folder: it ends a moment after its driver."""
    deadline = time.monotonic() + _ORPHAN_S
    while lease.is_held(folder) and time.monotonic() < deadline:
        time.sleep(0.5)


def free_workers(folder: Path) -> None:
    """Give back the CPUs and GPUs of a trial whose processes have ended, if they did so before they gave them back.

    Ray Train's own cleaner, which should remove the workers' placement group, asks the dashboard: without one it is kept for ever.
    """
    path = folder / PLACEMENT
    if path.exists():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(path.read_text()))))
        path.unlink()

"""What a training that is a trial of a sweep does more: at some of its steps the first worker measures samples of the EMA weights,
keeps the figure on the disk, and all workers report it to Ray Train, from where it goes to Ray Tune and MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.v2.api.callback import UserCallback
from ray.util.placement_group import get_current_placement_group

from semantica.data.durable import write_atomically
from semantica.data.location import Location, location
from semantica.data.pictures import TokensOf
from semantica.denoiser.uvit import UViT
from semantica.distributed.training_reports import FRECHET, Reporter
from semantica.sweeps.measuring import HeldOut, TrialMeasurer
from semantica.sweeps.results import Figure, figure_path, keep_figure, read_figure
from semantica.sweeps.settings import MeasureConfig
from semantica.training.ema import Ema
from semantica.training.parallel import whole
from semantica.training.recipe import TrainConfig

PLACEMENT = ".placement"  # in a trial's folder: the placement group of its workers, which may outlive it


@dataclass(frozen=True)
class Watch:
    """What workers need to measure: the folder of the trial, the steps of its points, and the sweep's fixed conditions.

    measured_by: the encodings whose encoder measures. All places are URIs. pause: the step of a point, after which the training is
    saved and ends, to go on another time.
    """

    folder: str
    steps: tuple[int, ...]
    settings: MeasureConfig
    held_out: str
    references: str
    measured_by: str
    pause: int | None = None


@dataclass(frozen=True)
class Trial:
    """A training as a part of a sweep: its name and its settings in MLflow, what is measured, and who hears of it."""

    name: str
    settings: Mapping[str, str | float]
    watch: Watch
    callbacks: Sequence[UserCallback] = ()


def reported(figure: Figure, num_points: int) -> dict[str, Any]:
    """A figure as Ray Tune and MLflow see it."""
    last = {"frechet_final": figure.frechet} if figure.point == num_points else {}
    return {FRECHET: figure.frechet, "point": figure.point, **last}


class Points:
    """A worker's part in the points of a trial; for a training that is none, there are no points."""

    def __init__(
        self,
        watch: Watch | None,
        config: TrainConfig,
        encodings: Location,
        tokens_of: TokensOf | None,
        device: torch.device | str,
        reporter: Reporter | None,
        rank: int,
        *,
        is_new: bool,
    ) -> None:
        self.watch, self.config, self.encodings, self.tokens_of = watch, config, encodings, tokens_of
        self.device, self.reporter, self.rank = device, reporter, rank
        self.steps = frozenset(watch.steps if watch else ())
        self.pause = watch.pause if watch else None
        self._measurer: TrialMeasurer | None = None
        # When the point before was done, or the training began; None where that was in another process.
        self._since = time.monotonic() if is_new else None
        if watch is not None and rank == 0:
            write_atomically(Path(watch.folder) / PLACEMENT, get_current_placement_group().id.hex().encode())

    def measure(self, step: int, network: UViT, ema: Ema) -> None:
        """Measure after this step, unless its figure is on the disk, and report. All workers call it and wait for the first."""
        if self.watch is None:
            return
        point = self.watch.steps.index(step) + 1
        folder = Path(self.watch.folder)
        figure = read_figure(folder, point) if self.rank == 0 else None
        # Workers that share out the state gather it together, or none does.
        known = ray.train.collective.broadcast_from_rank_zero(figure is not None)
        average = {} if known else whole(ema.values, keep=self.rank == 0)
        if self.rank == 0:
            figure = figure or self._measured(folder, point, step, average)
            self._say(folder, figure)
            self._since = time.monotonic()
        values = reported(figure, len(self.watch.steps)) if figure else {}
        ray.train.report(values)  # all come here: what the first one says counts

    def _measured(self, folder: Path, point: int, step: int, average: Mapping[str, torch.Tensor]) -> Figure:
        assert self.watch is not None
        begun = time.monotonic()
        if self._measurer is None:
            self._measurer = TrialMeasurer(
                self.watch.settings,
                self.config,
                HeldOut.read(Path(self.watch.held_out)),
                location(self.watch.references),
                encodings=self.encodings,
                measured_by=location(self.watch.measured_by),
                tokens_of=self.tokens_of,
                device=self.device,
            )
        measurer = self._measurer
        frechet, png = measurer.measure(average)
        write_atomically(figure_path(folder, point).with_suffix(".png"), png)  # first: where there is a figure, there is a picture
        figure = Figure(
            point=point,
            step=step,
            frechet=frechet,
            num_samples=len(measurer.held_out.conditions),
            num_reference=measurer.held_out.num_reference,
            extractor=measurer.extractor.identity.name,
            seconds=None if self._since is None else begun - self._since,
            measuring_seconds=time.monotonic() - begun,
        )
        return keep_figure(folder, figure)

    def _say(self, folder: Path, figure: Figure) -> None:
        assert self.watch is not None
        if self.reporter is not None:
            png = figure_path(folder, figure.point).with_suffix(".png").read_bytes()
            figures = reported(figure, len(self.watch.steps))
            self.reporter.put({"step": figure.step, "figures": figures, "samples": png})

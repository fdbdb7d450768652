"""The plan of a sweep: its inputs and settings, as the user gave them. It is stored in the sweep's folder for `--resume`."""

from __future__ import annotations

import json
from pathlib import Path

from semantica.config import config, to_dict
from semantica.config.identity import from_record
from semantica.data.durable import write_atomically
from semantica.errors import DataError
from semantica.pairs.selection import BandConfig
from semantica.sweeps.settings import SweepConfig
from semantica.sweeps.space import Swept
from semantica.training.recipe import TrainConfig

PLAN = "asked.json"


@config
class SweepPlan:
    """encodings, scores: places, by the name of their encoder. train, band: the configuration that trials change."""

    encodings: dict[str, str]
    scores: dict[str, str]
    sweep: SweepConfig
    band: BandConfig
    train: TrainConfig

    @property
    def swept(self) -> Swept:
        """The part that trials change."""
        return Swept(train=self.train, band=self.band)


def write_plan(plan: SweepPlan, out: Path) -> None:
    """Write the plan into the folder of its sweep."""
    write_atomically(out / PLAN, json.dumps(to_dict(plan), indent=1).encode())


def read_plan(out: Path) -> SweepPlan:
    """The plan in the folder of a sweep. Raises DataError when there is none."""
    try:
        return from_record(SweepPlan, json.loads((out / PLAN).read_text()))
    except FileNotFoundError:
        raise DataError(f"--resume: no sweep was begun in {out}; leave --resume out to begin one") from None
    except ValueError as error:
        raise DataError(f"--resume: {out / PLAN} is damaged ({error}); give the whole command without --resume") from None

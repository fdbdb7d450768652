"""python -m benchmarks.small_budgets [--run runs/quickstart --steps 700]: what helps a training of minutes.

On the pictures of a run of `semantica quickstart`, each variant is trained as its preset says but for the fields below. Figure: the
mean squared error of x_hat on held-out pictures at four noise levels, told their own page or another one. What the model is told
counts for little where both errors are equal. A variant that is in the results is not trained again unless --again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, Measured, record
from semantica.conditioning.values import Conditioning
from semantica.config import override
from semantica.data.dataset import read_manifest
from semantica.data.location import location
from semantica.data.pictures import PictureRef, StoredPictures, decode, list_pictures
from semantica.diffusion.process import diffuse
from semantica.encoders.on_the_fly import tokens_on_the_fly
from semantica.generation.conditions import Conditions
from semantica.generation.model import Model
from semantica.pairs.loader import open_pairs, to_unit
from semantica.presets import preset
from semantica.training.checkpoint import Provenance, TrainState
from semantica.training.feed import training_loader
from semantica.training.loop import Hooks, fit
from semantica.training.recipe import TrainConfig

LEVELS = (-6.0, -4.0, -2.0, 0.0)
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "today": {},
    "loss on v": {"loss": "v"},
    "v, tokens standardised": {"loss": "v", "denoiser.standardised_tokens": True},
    "v, standardised, places": {"loss": "v", "denoiser.standardised_tokens": True, "denoiser.token_places": True},
    "all three, cross-attention alone": {
        "loss": "v",
        "denoiser.standardised_tokens": True,
        "denoiser.token_places": True,
        "denoiser.conditioning": "cross_attention",
    },
}


def trained(config: TrainConfig, run: Path) -> Model:
    """The model with EMA weights after a training in this process."""
    encodings = location(run / "encodings")
    tokens_of = tokens_on_the_fly(read_manifest(encodings, "encodings"))
    loader = training_loader(config, open_pairs(encodings, location(run / "selection")), tokens_of=tokens_of)
    states: list[TrainState] = []
    network = fit(
        config, loader, Provenance({}, "", ""), Hooks(lambda report: print(report.step, f"{report.loss:.4f}"), states.append)
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(states[-1].ema.values[name])
    return Model(network.eval(), config.schedule, config.prediction)


def held_out_pairs(run: Path, num: int) -> tuple[list[PictureRef], list[PictureRef]]:
    """(targets, conditioning images): two held-out pictures of each of `num` pages."""
    by_page: dict[str, list[PictureRef]] = {}
    for picture in list_pictures(location(run / "encodings")):
        by_page.setdefault(picture.episode_id, []).append(picture)
    pages = [pictures for _, pictures in sorted(by_page.items()) if len(pictures) > 1][:num]
    return [pictures[0] for pictures in pages], [pictures[1] for pictures in pages]


@torch.no_grad()
def errors(model: Model, x: torch.Tensor, cond: Conditioning) -> list[float]:
    """The mean squared error of x_hat at each level, under one noise for all models and conditions."""
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    denoise, found = model.bind(cond), []
    for level in LEVELS:
        logsnr = torch.full((len(x),), level)
        found.append(float((denoise(diffuse(x, eps, logsnr), logsnr) - x).square().mean()))
    return found


def main() -> None:
    """Print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = replace(preset(arguments.preset).train, num_steps=arguments.steps, checkpoint_every=arguments.steps, sample_every=None)
    targets, told = held_out_pairs(arguments.run, arguments.num)
    encodings = location(arguments.run / "encodings")
    stored = StoredPictures(encodings).read(targets)
    x = to_unit(torch.stack([decode(stored[picture.image_id], base.denoiser.resolution_px) for picture in targets]))
    cond = Conditions(encodings, tokens_on_the_fly(read_manifest(encodings, "encodings"))).read(told)
    other = cond[torch.arange(len(x)).roll(1)]
    path = RESULTS / "small_budgets.json"
    known = {m["name"] for m in json.loads(path.read_text())} if path.exists() and not arguments.again else set()
    for name, changes in VARIANTS.items():
        if f"{name}, logsnr {LEVELS[0]:g}, own" in known:
            continue
        model = trained(override(base, changes), arguments.run)
        measured = []
        for kind, told_of in (("own", cond), ("other", other)):
            for level, error in zip(LEVELS, errors(model, x, told_of), strict=True):
                measured.append(
                    Measured(name=f"{name}, logsnr {level:g}, {kind}", figure=error, unit="mean squared error of x_hat")
                )
        record("small_budgets", measured, is_part=True)


if __name__ == "__main__":
    main()

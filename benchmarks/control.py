"""python -m benchmarks.control [--run runs/quickstart]: what guidance, a wanted similarity and several conditioning images do.

On the real pictures of `make demo`, which has to have run. Guidance is measured on its checkpoint: Fréchet distance in the
encoder's features (against the held-out pictures; small n, so it compares within this table only) and similarity to the
conditioning image (corpus mean subtracted), with and without what goes beyond plain w. Then one denoiser of the same size is
trained that takes the similarity of the pair and one to four images, on a wider band over the same scores, and asked for both.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import Measured, record
from benchmarks.steering import MAX_IMAGES, SAMPLER, Bench, conditioning, error_of, losses_of, trained
from semantica.conditioning.signals import SIMILARITY
from semantica.data.pictures import decode
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.generation.model import Model
from semantica.pairs.loader import to_unit
from semantica.training.checkpoint import open_checkpoint

WEIGHTS = (0.0, 0.5, 3.0)
BEYOND = {
    "plain": GuidanceConfig(),
    "threshold": GuidanceConfig(threshold=0.995),
    "rescale": GuidanceConfig(rescale=0.7),
    "interval": GuidanceConfig(interval=(-3.0, 3.0)),
    "APG": GuidanceConfig(parallel=0.0),
}
ASKED = (0.1, 0.3, 0.5, 0.7, 0.9)
ASKED_AT = ((0.5, 0.0), (0.5, 4.0), (2.0, 0.0), (2.0, 4.0))  # guidance w, and that of the request alone
SAMPLERS = (
    SAMPLER,
    SamplerConfig(num_steps=16),
    SamplerConfig(name="ddim", num_steps=48),
    SamplerConfig(name="ddim", num_steps=16),
    SamplerConfig(name="dpm_solver", num_steps=48),
    SamplerConfig(name="dpm_solver", num_steps=16),
)


def guidance_table(bench: Bench, num: int) -> list[Measured]:
    """Distance, similarity and the standard deviation of pixels against w, plain and refined."""
    model, pictures = Model.of(bench.checkpoint), bench.chosen(num)
    cond, measured = conditioning([p] for p in pictures), []
    for w in WEIGHTS:
        for name, beyond in BEYOND.items():
            if w == 0 and name != "plain":
                continue
            features = bench.sample(model, cond, w, beyond)
            cosine = bench.cosine(features, pictures)
            label = f"guidance w = {w:g}, {name}"
            measured.append(Measured(name=label, figure=bench.distance(features), unit="Frechet distance"))
            measured.append(Measured(name=label, figure=float(cosine.mean()), unit=f"similarity, ± {error_of(cosine):.3f}"))
            print(f"{label}: FD {measured[-2].figure:.1f}, similarity {cosine.mean():.3f}", flush=True)
    return measured


def sampler_table(bench: Bench, num: int) -> list[Measured]:
    """Distance and similarity of every sampler at w = 0.5."""
    model, pictures = Model.of(bench.checkpoint), bench.chosen(num)
    cond, measured = conditioning([p] for p in pictures), []
    for sampler in SAMPLERS:
        features = bench.sample(model, cond, 0.5, sampler=sampler)
        cosine = bench.cosine(features, pictures)
        label = f"{sampler.name}, {sampler.num_steps} steps"
        measured.append(Measured(name=label, figure=bench.distance(features), unit="Frechet distance"))
        measured.append(Measured(name=label, figure=float(cosine.mean()), unit=f"similarity, ± {error_of(cosine):.3f}"))
        print(f"{label}: FD {measured[-2].figure:.1f}, similarity {cosine.mean():.3f}", flush=True)
    return measured


def similarity_table(bench: Bench, model: Model, num: int) -> list[Measured]:
    """Does the similarity of samples follow the one that was asked for, with guidance of images and request, and of the request?"""
    pictures, measured = bench.chosen(num), told_table(bench, model, 2 * num)
    x = np.array(ASKED)
    for w, request in ASKED_AT:
        at, found = f"w = {w:g}, request {request:g}", {}
        for asked in (None, *ASKED) if request == 0 else ASKED:
            cond = conditioning([[p] for p in pictures], asked)
            features = bench.sample(model, cond, w, GuidanceConfig(request=request))
            found[asked] = bench.cosine(features, pictures)
            label = f"samples at {at}, similarity {'none' if asked is None else f'{asked:g}'} asked for"
            measured.append(Measured(name=label, figure=float(found[asked].mean()), unit=f"cosine, ± {error_of(found[asked]):.3f}"))
            measured.append(Measured(name=label, figure=bench.distance(features), unit="Frechet distance"))
            print(f"{label}: {found[asked].mean():.3f}, FD {measured[-1].figure:.1f}", flush=True)
        got = np.stack([found[asked] for asked in ASKED])
        slopes = ((x - x.mean())[:, None] * got).sum(0) / ((x - x.mean()) ** 2).sum()
        slope, error = float(slopes.mean()), error_of(slopes)
        print(f"slope of similarity against request at {at}: {slope:.3f} ± {error:.3f}", flush=True)
        measured += [
            Measured(
                name=f"slope of similarity against request at {at}",
                figure=slope,
                unit=f"per unit asked for, ± {error:.3f}",
                target="> 0 by 3 standard errors",
                holds=slope > 3 * error,
            ),
            Measured(name=f"conditioning images whose samples follow at {at}", figure=float((slopes > 0).mean()), unit="share"),
        ]
    return measured


def told_table(bench: Bench, model: Model, num: int) -> list[Measured]:
    """Does it help the denoiser to be told the similarity of a held-out pair: against nothing, and against another pair's?"""
    trials, side = bench.trials(num), model.schedule.resolution_px
    x = to_unit(torch.stack([decode(trial.target.data, side) for trial in trials]))
    ends = torch.stack([torch.stack([trial.target.pooled, trial.others[0].pooled]) for trial in trials]).double()
    ends = torch.nn.functional.normalize(ends - torch.from_numpy(bench.mean), dim=-1)
    true = (ends[:, 0] * ends[:, 1]).sum(-1).float()
    tokens = conditioning([trial.others[0]] for trial in trials)
    told = {"its own": true, "none": None, "another pair's": true.roll(1)}
    losses = {
        name: losses_of(model, x, tokens if similarity is None else tokens.told(SIMILARITY, similarity))
        for name, similarity in told.items()
    }
    measured = [Measured(name=f"loss, told {name}", figure=float(each.mean()), unit="eps-loss") for name, each in losses.items()]
    for other in ("none", "another pair's"):
        gain = losses[other] - losses["its own"]
        measured.append(
            Measured(
                name="gain in loss by being told the similarity",
                figure=float(gain.mean()),
                unit=f"paired, ± {error_of(gain):.5f}",
                target="> 0 by 2 standard errors",
                holds=bool(gain.mean() > 2 * error_of(gain)),
                peer=f"told {other}",
            )
        )
    return measured


def images_table(bench: Bench, model: Model, num: int) -> list[Measured]:
    """Do more images describe a page better? Loss on a picture of it that is not shown, likeness of samples to such pictures."""
    trials, side = bench.trials(num), model.schedule.resolution_px
    x = to_unit(torch.stack([decode(trial.target.data, side) for trial in trials]))
    found: dict[str, list[np.ndarray]] = {"loss": [], "likeness to a picture": [], "likeness to the page": []}
    for m in range(1, MAX_IMAGES + 1):
        cond = conditioning(trial.others[:m] for trial in trials)
        found["loss"].append(losses_of(model, x, cond))
        features = bench.sample(model, cond, 0.5)
        found["likeness to a picture"].append(bench.cosine(features, [trial.target for trial in trials]))
        found["likeness to the page"].append(bench.mean_cosine(features, [trial.unseen for trial in trials]))
    measured = []
    for name, values in found.items():
        sign = -1 if name == "loss" else 1
        for m, each in enumerate(values, start=1):
            what = f"{name}, {m} conditioning image" + ("s" if m > 1 else "")
            unit = "eps-loss" if name == "loss" else "cosine"
            measured.append(Measured(name=what, figure=float(each.mean()), unit=f"{unit}, ± {error_of(each):.4f}"))
            if m > 1:
                gain = sign * (each - values[0])
                mean, error = float(gain.mean()), error_of(gain)
                measured.append(
                    Measured(
                        name=f"gain in {what}",
                        figure=mean,
                        unit=f"over one image, paired, ± {error:.5f}",
                        target="> 0 by 2 standard errors",
                        holds=mean > 2 * error,
                        peer="1 conditioning image",
                    )
                )
            print(f"{measured[-1].name}: {measured[-1].figure:.5f} {measured[-1].unit}", flush=True)
    return measured


def main() -> None:
    """Measure and record everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--num", type=int, default=96, help="conditioning images")
    parser.add_argument("--trials", type=int, default=264, help="targets that are described by one to four images")
    parser.add_argument(
        "--model", type=Path, help="the checkpoint that an earlier run left in a folder of yours; else trained anew"
    )
    parts = ("similarity", "images", "guidance", "samplers")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    bench = Bench(options.run.absolute())
    measured: list[Measured] = []
    if {"similarity", "images"} & set(options.parts):
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = open_checkpoint(options.model) if options.model else trained(bench, options.steps, Path(scratch))
            model = Model.of(checkpoint)
        if "similarity" in options.parts:
            measured += similarity_table(bench, model, options.num)
        if "images" in options.parts:
            measured += images_table(bench, model, options.trials)
    if "guidance" in options.parts:
        measured += guidance_table(bench, options.num)
    if "samplers" in options.parts:
        measured += sampler_table(bench, options.num)
    print(record("control", measured))


if __name__ == "__main__":
    main()

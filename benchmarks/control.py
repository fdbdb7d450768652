"""python -m benchmarks.control [--run runs/quickstart]: what guidance, a wanted similarity and several conditioning images do.

On the real pictures of `make demo`, which has to have run. Guidance is measured on its checkpoint: Fréchet distance in the
encoder's features (against the held-out pictures; small n, so it compares within this table only) and similarity to the
conditioning image (corpus mean subtracted), with and without what goes beyond plain w. Then one denoiser of the same size is
trained that takes the similarity of the pair and one to four images, on a wider band over the same scores, and asked for both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import Measured, record
from semantica.conditioning import Conditioning
from semantica.datasets import read_manifest, read_shard
from semantica.diffusion.guidance import GuidanceConfig
from semantica.diffusion.samplers import SamplerConfig
from semantica.encoders.encode import encode_pictures
from semantica.encoders.encoder import Encoder, EncoderConfig, load_encoder
from semantica.generation.conditions import HELD_OUT
from semantica.generation.generate import GenerateConfig, png_bytes, sample_pictures
from semantica.generation.model import Model
from semantica.metrics.frechet import FeatureStatistics, frechet_distance
from semantica.pairs.draw import generator
from semantica.pairs.loader import PairLoader, decode_at, to_unit
from semantica.pairs.scores import pooled_rows
from semantica.pairs.selection import BandConfig, select, selection_stage
from semantica.schemas import token_rows
from semantica.training.checkpoint import Checkpoint, TrainState, open_checkpoint
from semantica.training.loop import Hooks, fit
from semantica.training.recipe import TrainConfig
from semantica.training.step import StepNoise, step_loss
from semantica.training.writing import write_checkpoint

WEIGHTS = (0.0, 0.5, 3.0)
BEYOND = {
    "plain": GuidanceConfig(),
    "threshold": GuidanceConfig(threshold=0.995),
    "rescale": GuidanceConfig(rescale=0.7),
    "interval": GuidanceConfig(interval=(-3.0, 3.0)),
    "APG": GuidanceConfig(parallel=0.0),
}
ASKED = (0.1, 0.3, 0.5, 0.7, 0.9)
ASKED_AT = (0.5, 2.0)  # guidance w
MAX_IMAGES = 4
SAMPLER = SamplerConfig(num_steps=48)  # the demo's
SAMPLERS = (
    SAMPLER,
    SamplerConfig(num_steps=16),
    SamplerConfig(name="ddim", num_steps=48),
    SamplerConfig(name="ddim", num_steps=16),
    SamplerConfig(name="dpm_solver", num_steps=48),
    SamplerConfig(name="dpm_solver", num_steps=16),
)
WIDE = BandConfig(low=0.0, high=0.95, score="centred_cosine")


@dataclass(frozen=True)
class Picture:
    """A held-out picture with its encodings; at_size: the pooled embedding at the model's resolution, which samples have."""

    data: bytes
    tokens: Tensor
    pooled: Tensor
    at_size: np.ndarray


class Bench:
    """The held-out pictures of a run, its encoder, and what is measured of samples."""

    def __init__(self, run: Path) -> None:
        self.run = run
        manifest = read_manifest(run / "encodings", "encodings")
        self.checkpoint = open_checkpoint(run / "checkpoint" / "model")
        self.mean = np.array(manifest.facts["corpus_mean"], np.float64)
        self.encoder: Encoder = load_encoder(EncoderConfig(**manifest.config["encoder"]))
        self.pages = self._held_out()
        self.reference = np.stack([p.at_size for page in self.pages for p in page])

    def _held_out(self) -> list[list[Picture]]:
        manifest = read_manifest(self.run / "encodings", "encodings")
        shape = (manifest.facts["encoder"]["num_tokens"], manifest.facts["encoder"]["token_dim"])
        pages: dict[str, list[Picture]] = defaultdict(list)
        for entry in manifest.shards(HELD_OUT):
            table = read_shard(self.run / "encodings", entry, ["episode_id", "images", "pooled", "tokens"])
            for row, (pooled, tokens) in enumerate(zip(pooled_rows(table["pooled"]), token_rows(table["tokens"]), strict=True)):
                images = table["images"][row].as_py()
                small = [png_bytes(decode_at(image["bytes"], self.checkpoint.config.denoiser.resolution_px)) for image in images]
                at_size = encode_pictures(small, self.encoder, 16).pooled.numpy()
                for index, image in enumerate(images):
                    own = torch.from_numpy(tokens[index].astype(np.float32).reshape(shape))
                    page = table["episode_id"][row].as_py()
                    pages[page].append(Picture(image["bytes"], own, torch.from_numpy(pooled[index]), at_size[index]))
        return [pages[name] for name in sorted(pages)]

    def chosen(self, num: int) -> list[Picture]:
        """`num` held-out pictures, the same ones every time."""
        everything = [p for page in self.pages for p in page]
        order = generator("control", "conditions").permutation(len(everything))[:num]
        return [everything[i] for i in order]

    def trials(self, num: int) -> list[tuple[Picture, list[Picture]]]:
        """(a target, MAX_IMAGES others of its page), the same ones every time."""
        large = [page for page in self.pages if len(page) > MAX_IMAGES]
        found = []
        for trial in range(num):
            chance = generator("control", "trial", trial)
            page = large[int(chance.integers(len(large)))]
            target, *others = (page[i] for i in chance.permutation(len(page))[: MAX_IMAGES + 1])
            found.append((target, others))
        return found

    def sample(
        self,
        model: Model,
        cond: Conditioning,
        guidance: float,
        beyond: GuidanceConfig | None = None,
        sampler: SamplerConfig = SAMPLER,
    ) -> np.ndarray:
        """Pooled embeddings (n, D) of one sample for each row, row i from the same noise whatever else differs."""
        config = GenerateConfig(sampler=sampler, beyond=beyond or GuidanceConfig())
        names = [f"control/{i}" for i in range(len(cond))]
        pictures = [png_bytes(p) for p in sample_pictures(model, cond, names, guidance, config, max_rows=64)]
        return encode_pictures(pictures, self.encoder, 16).pooled.numpy()

    def cosine(self, features: np.ndarray, others: Sequence[Picture]) -> np.ndarray:
        """Of each row to its picture, corpus mean subtracted."""
        a, b = (x.astype(np.float64) - self.mean for x in (features, np.stack([p.at_size for p in others])))
        cosines: np.ndarray = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        return cosines

    def distance(self, features: np.ndarray) -> float:
        """Fréchet distance to the held-out pictures."""
        return frechet_distance(FeatureStatistics.of(features), FeatureStatistics.of(self.reference))


def conditioning(pictures: Iterable[Sequence[Picture]], similarity: float | None = None) -> Conditioning:
    """A row for each of `pictures`, which all hold as many."""
    rows = list(pictures)
    tokens = torch.stack([torch.stack([p.tokens for p in row]) for row in rows])
    pooled = torch.stack([torch.stack([p.pooled for p in row]) for row in rows])
    return Conditioning.of(tokens, pooled, None if similarity is None else torch.full((len(rows),), similarity))


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
            measured.append(Measured(name=label, figure=float(cosine.mean()), unit=f"similarity, ± {_error(cosine):.3f}"))
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
        measured.append(Measured(name=label, figure=float(cosine.mean()), unit=f"similarity, ± {_error(cosine):.3f}"))
        print(f"{label}: FD {measured[-2].figure:.1f}, similarity {cosine.mean():.3f}", flush=True)
    return measured


def trained(bench: Bench, num_steps: int, folder: Path) -> Checkpoint:
    """A checkpoint of the run's denoiser with similarity and several images, trained on the wide band."""
    config = _recipe(bench.checkpoint.config, num_steps)
    scores, selection = bench.run / "scores", folder / "selection"
    stage = selection_stage(scores, WIDE, selection)
    stage.open()
    select(stage, scores, WIDE)
    loader = PairLoader(
        bench.run / "encodings",
        selection,
        seed=config.seed,
        batch_size=config.batch_size,
        num_lanes=config.num_lanes,
        window_groups=config.window_groups,
        resolution_px=config.denoiser.resolution_px,
        max_images=MAX_IMAGES,
    )
    started = time.monotonic()

    def on_checkpoint(state: TrainState) -> None:
        if state.step == num_steps:
            write_checkpoint(folder / "model", state.snapshot())

    hooks = Hooks(
        lambda r: print(f"step {r.step}: loss {r.loss:.3f}, {time.monotonic() - started:.0f} s", flush=True), on_checkpoint
    )
    fit(config, loader, bench.checkpoint.provenance, hooks)
    return open_checkpoint(folder / "model")


def _recipe(config: TrainConfig, num_steps: int) -> TrainConfig:
    denoiser = replace(config.denoiser, similarity=True, max_images=MAX_IMAGES)
    return replace(config, denoiser=denoiser, num_steps=num_steps, log_every=50, checkpoint_every=num_steps)


def similarity_table(bench: Bench, model: Model, num: int) -> list[Measured]:
    """Does the similarity of samples follow the one that was asked for? Guidance strengthens the request like the condition."""
    pictures, measured = bench.chosen(num), told_table(bench, model, 2 * num)
    x = np.array(ASKED)
    for w in ASKED_AT:
        found = {}
        for asked in (None, *ASKED):
            found[asked] = bench.cosine(bench.sample(model, conditioning([[p] for p in pictures], asked), w), pictures)
            what = "none" if asked is None else f"{asked:g}"
            label = f"similarity of samples at w = {w:g}, {what} asked for"
            measured.append(Measured(name=label, figure=float(found[asked].mean()), unit=f"cosine, ± {_error(found[asked]):.3f}"))
            print(f"{label}: {measured[-1].figure:.3f}", flush=True)
        got = np.stack([found[asked] for asked in ASKED])
        slopes = ((x - x.mean())[:, None] * got).sum(0) / ((x - x.mean()) ** 2).sum()
        slope, error = float(slopes.mean()), _error(slopes)
        measured += [
            Measured(
                name=f"slope of similarity against request at w = {w:g}",
                figure=slope,
                unit=f"per unit asked for, ± {error:.3f}",
                target="> 0 by 3 standard errors",
                holds=slope > 3 * error,
            ),
            Measured(
                name=f"conditioning images whose samples follow at w = {w:g}", figure=float((slopes > 0).mean()), unit="share"
            ),
        ]
    return measured


def told_table(bench: Bench, model: Model, num: int) -> list[Measured]:
    """Does it help the denoiser to be told the similarity of a held-out pair: against nothing, and against another pair's?"""
    trials, side = bench.trials(num), model.schedule.resolution_px
    x = to_unit(torch.stack([decode_at(target.data, side) for target, _ in trials]))
    ends = torch.stack([torch.stack([target.pooled, others[0].pooled]) for target, others in trials]).double()
    ends = torch.nn.functional.normalize(ends - torch.from_numpy(bench.mean), dim=-1)
    true = (ends[:, 0] * ends[:, 1]).sum(-1).float()
    tokens = conditioning([others[0]] for _, others in trials)
    told = {"its own": true, "none": None, "another pair's": true.roll(1)}
    losses = {
        name: _losses(model, x, replace(tokens, similarity=tokens.similarity if similarity is None else similarity))
        for name, similarity in told.items()
    }
    measured = [Measured(name=f"loss, told {name}", figure=float(each.mean()), unit="eps-loss") for name, each in losses.items()]
    for other in ("none", "another pair's"):
        gain = losses[other] - losses["its own"]
        measured.append(
            Measured(
                name="gain in loss by being told the similarity",
                figure=float(gain.mean()),
                unit=f"paired, ± {_error(gain):.5f}",
                target="> 0 by 2 standard errors",
                holds=bool(gain.mean() > 2 * _error(gain)),
                peer=f"told {other}",
            )
        )
    return measured


def _losses(model: Model, x: Tensor, cond: Conditioning) -> np.ndarray:
    """The eps-loss (n,) of each picture, over ten levels, with the same noise whatever the condition."""
    draws = torch.Generator().manual_seed(0)
    levels, eps = torch.linspace(0.05, 0.95, 10), torch.randn(10, *x.shape, generator=draws)
    never = torch.zeros(len(x), dtype=torch.bool)
    with torch.inference_mode():
        noises = [StepNoise(t.expand(len(x)), e, never, never) for t, e in zip(levels, eps, strict=True)]
        each = [step_loss(model.network, x, cond, noise, model.schedule, model.prediction) for noise in noises]
    return torch.stack(each).mean(0).numpy()


def images_table(bench: Bench, model: Model, num: int) -> list[Measured]:
    """Do more images describe a picture better? Loss on a held-out one, and likeness to it, given others of its page."""
    trials, side = bench.trials(num), model.schedule.resolution_px
    x = to_unit(torch.stack([decode_at(target.data, side) for target, _ in trials]))
    losses, likeness = [], []
    for m in range(1, MAX_IMAGES + 1):
        cond = conditioning(others[:m] for _, others in trials)
        losses.append(_losses(model, x, cond))
        likeness.append(bench.cosine(bench.sample(model, cond, 0.5), [target for target, _ in trials]))
    measured = []
    for m in range(1, MAX_IMAGES + 1):
        what = f"{m} conditioning image" + ("s" if m > 1 else "")
        measured.append(Measured(name=f"loss, {what}", figure=float(losses[m - 1].mean()), unit="eps-loss"))
        cosine = likeness[m - 1]
        measured.append(
            Measured(
                name=f"likeness to an unseen picture of the page, {what}",
                figure=float(cosine.mean()),
                unit=f"cosine, ± {_error(cosine):.3f}",
            )
        )
        if m > 1:
            for name, values, sign in (("loss", losses, -1), ("likeness", likeness, 1)):
                gain = sign * (values[m - 1] - values[0])
                mean, error = float(gain.mean()), _error(gain)
                measured.append(
                    Measured(
                        name=f"gain in {name}, {what}",
                        figure=mean,
                        unit=f"over one image, paired, ± {error:.4f}",
                        target="> 0 by 2 standard errors",
                        holds=mean > 2 * error,
                        peer="1 conditioning image",
                    )
                )
    return measured


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def main() -> None:
    """Measure and record everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--num", type=int, default=48)
    options = parser.parse_args()
    bench = Bench(options.run.absolute())
    with tempfile.TemporaryDirectory() as scratch:
        model = Model.of(trained(bench, options.steps, Path(scratch)))
    measured = [*similarity_table(bench, model, options.num), *images_table(bench, model, options.num)]
    measured += [*guidance_table(bench, options.num), *sampler_table(bench, options.num)]
    print(record("control", measured))


if __name__ == "__main__":
    main()

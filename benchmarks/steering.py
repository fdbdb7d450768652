"""The held-out pictures of a run, samples of a model for them, and what is measured of these; and a model that takes more requests.

Used by benchmarks.control. Everything is drawn by name, so that two tables, or two runs, are about the same pictures and noise.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semantica.conditioning.values import Conditioning
from semantica.data.dataset import read_manifest, read_shard
from semantica.data.pictures import decode
from semantica.data.schemas import HELD_OUT, token_rows
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.encoders.encode import encode_pictures
from semantica.encoders.encoder import Encoder, load_encoder
from semantica.encoders.settings import EncoderConfig
from semantica.generation.generate import png_bytes, sample_pictures
from semantica.generation.model import Model
from semantica.generation.settings import GenerateConfig
from semantica.measure.frechet import FeatureStatistics, frechet_distance
from semantica.pairs.draw import generator
from semantica.pairs.loader import open_pairs
from semantica.pairs.scores import pooled_rows
from semantica.pairs.selection import BandConfig, select, selection_stage
from semantica.training.checkpoint import Checkpoint, TrainState, open_checkpoint, write_checkpoint
from semantica.training.feed import training_loader
from semantica.training.loop import Hooks, fit
from semantica.training.recipe import TrainConfig
from semantica.training.step import StepNoise, step_loss

MAX_IMAGES = 4
SAMPLER = SamplerConfig(num_steps=48)  # the demo's
WIDE = BandConfig(low=0.0, high=0.95, score="centred_cosine")


@dataclass(frozen=True)
class Picture:
    """A held-out picture with its encodings; at_size: the pooled embedding at the model's resolution, which samples have."""

    data: bytes
    tokens: Tensor
    pooled: Tensor
    at_size: np.ndarray


@dataclass(frozen=True)
class Trial:
    """A picture that is to be described by MAX_IMAGES others of its page; unseen: it, and what else of the page is not shown."""

    target: Picture
    others: list[Picture]
    unseen: list[Picture]


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
                small = [png_bytes(decode(image["bytes"], self.checkpoint.config.denoiser.resolution_px)) for image in images]
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

    def trials(self, num: int) -> list[Trial]:
        """Up to `num` targets, no picture twice, each with others of its page, the same ones every time."""
        large = [(page, i) for page in self.pages if len(page) > MAX_IMAGES for i in range(len(page))]
        found = []
        for trial in generator("control", "targets").permutation(len(large))[:num]:
            page, target = large[trial]
            rest = [other for i, other in enumerate(page) if i != target]
            order = generator("control", "trial", int(trial)).permutation(len(rest))
            shown, unseen = ([rest[i] for i in part] for part in (order[:MAX_IMAGES], order[MAX_IMAGES:]))
            found.append(Trial(page[target], shown, [page[target], *unseen]))
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

    def mean_cosine(self, features: np.ndarray, others: Sequence[Sequence[Picture]]) -> np.ndarray:
        """Of each row to its pictures, the mean."""
        return np.array(
            [self.cosine(np.repeat(row[None], len(of), 0), of).mean() for row, of in zip(features, others, strict=True)]
        )

    def distance(self, features: np.ndarray) -> float:
        """Fréchet distance to the held-out pictures."""
        return frechet_distance(FeatureStatistics.of(features), FeatureStatistics.of(self.reference))


def conditioning(pictures: Iterable[Sequence[Picture]], similarity: float | None = None) -> Conditioning:
    """A row for each of `pictures`, which all hold as many."""
    rows = list(pictures)
    tokens = torch.stack([torch.stack([p.tokens for p in row]) for row in rows])
    pooled = torch.stack([torch.stack([p.pooled for p in row]) for row in rows])
    return Conditioning.of(tokens, pooled, None if similarity is None else torch.full((len(rows),), similarity))


def trained(bench: Bench, num_steps: int, folder: Path) -> Checkpoint:
    """A checkpoint of the run's denoiser with similarity and several images, trained on the wide band."""
    config = _recipe(bench.checkpoint.config, num_steps)
    scores, selection = bench.run / "scores", folder / "selection"
    stage = selection_stage(scores, WIDE, selection)
    stage.open()
    select(stage, scores, WIDE)
    loader = training_loader(config, open_pairs(bench.run / "encodings", selection))
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


def losses_of(model: Model, x: Tensor, cond: Conditioning) -> np.ndarray:
    """The eps-loss (n,) of each picture, over ten levels, with the same noise whatever the condition."""
    draws = torch.Generator().manual_seed(0)
    levels, eps = torch.linspace(0.05, 0.95, 10), torch.randn(10, *x.shape, generator=draws)
    with torch.inference_mode():
        noises = [StepNoise(t.expand(len(x)), e, {}) for t, e in zip(levels, eps, strict=True)]
        each = [step_loss(model.network, x, cond, noise, model.schedule, model.prediction) for noise in noises]
    return torch.stack(each).mean(0).numpy()


def error_of(values: np.ndarray) -> float:
    """The standard error of the mean."""
    return float(values.std(ddof=1) / len(values) ** 0.5)

"""What the guards compare, as plain data: settings, cases of sampling, the crawl, and the digests of what a run leaves.

Nothing here imports semantica. `then` (the code of commit f049af4) and `today` (the code of this tree) turn it into calls.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

# --- The pipeline: a demo that is small. ---

NUM_PAGES, NUM_PICTURES = 40, 7
PICTURES = (("drawn pictures", "the guards", "CC0"),)
DATA_STAGES = ("episodes", "encodings", "scores", "selection")
STAGES = (*DATA_STAGES, "checkpoint", "samples", "evaluation")

PIPELINE: Mapping[str, Any] = {
    "ingest.image.image_px": 32,
    "ingest.read.pages_per_part": 8,
    "encode.encoder.image_px": 28,
    "encode.batch_size": 16,
    "encode.rows_per_group": 4,
    "band.low": 0.0,
    "band.high": 0.95,
    "train.denoiser.token_dim": 32,
    "train.denoiser.num_tokens": 5,
    "train.denoiser.pooled_dim": 32,
    "train.num_steps": 50,
    "train.batch_size": 16,
    "train.optimizer.warmup_steps": 10,
    "train.optimizer.cooldown_steps": 10,
    "train.log_every": 1,
    "train.sample_every": None,
    "train.checkpoint_every": 25,
    "train.keep.every_steps": 25,
    "generate.num_conditions": 8,
    "generate.sampler.num_steps": 4,
    "generate.guidance": [0.0, 0.5],
    "evaluate.inception": False,
    "evaluate.perceptual": False,
}
"""Dotted names of PipelineConfig at f049af4 -> values; over the preset tiny."""

EVALUATION: Mapping[str, Any] = {
    "protocol": ["curve", "one-shot", "grouping", "training", "details", "grids"],
    "num": 6,
    "num_copies": 2,
    "guidance": [0.0, 0.5],
    "table_guidance": [0.5],
    "num_seeds": 2,
    "num_condition_sets": 2,
    "num_grid_rows": 2,
    "num_grid_samples": 2,
    "picture_px": 32,
    "extractor": ["encoder"],
    "perceptual": [],
    "sampler.num_steps": 2,
    "batch_size": 8,
}
"""Dotted names of EvaluationConfig at f049af4 -> values."""


def draw_crawl(root: Path) -> None:
    """A folder for each page: its pictures are discs and bars of one colour. Beside it, in html, pages that show the first ones."""
    for page in range(NUM_PAGES):
        folder = root / "folder" / f"page-{page:02d}"
        folder.mkdir(parents=True)
        colour = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(page / NUM_PAGES, 0.9, 0.8))
        for index in range(NUM_PICTURES):
            image = Image.new("RGB", (48, 48), "white")
            draw = ImageDraw.Draw(image)
            size, top = 8 + 4 * index, 4 + (index + page) % 7
            shape = draw.ellipse if index % 2 else draw.rectangle
            shape((2, top, 2 + size, top + size), fill=colour)
            image.save(folder / f"picture-{index}.png")
    for page in range(10):
        shown = [f"../folder/page-{page:02d}/picture-{index}.png" for index in range(4)]
        images = root / "html" / f"images-{page}"
        images.mkdir(parents=True)
        tags = []
        for source in shown:
            target = images / Path(source).name
            target.write_bytes((root / "html" / source).resolve().read_bytes())
            tags.append(f'<p>words<img src="images-{page}/{target.name}" alt="a shape"></p>')
        (root / "html" / f"page-{page}.html").write_text(f"<html><body>{''.join(tags)}<img src='gone.png'></body></html>")


def make_encoder(folder: Path) -> None:
    """A DINOv2 of random weights in the folder format of a hub."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder, safe_serialization=True)


# --- Trainings in one process, on the encodings and the selection of the pipeline. ---

SMALL_NET: Mapping[str, Any] = {
    "denoiser.stages": [
        {"channels": 16, "num_blocks": 1, "kind": "conv"},
        {"channels": 32, "num_blocks": 1, "kind": "transformer", "dropout": 0.2},
    ],
    "denoiser.patch_px": 2,
    "denoiser.noise_embedding_dim": 32,
    "denoiser.head_dim": 8,
    "denoiser.norm_groups": 4,
    "batch_size": 8,
    "num_steps": 10,
    "optimizer.warmup_steps": 3,
    "optimizer.cooldown_steps": 0,
    "checkpoint_every": 5,
    "conditioning_dropout": 0.25,
    "similarity_dropout": 0.25,
}


@dataclass(frozen=True)
class Training:
    """settings: dotted names of TrainConfig at f049af4 -> values, over the pipeline's."""

    name: str
    settings: Mapping[str, Any]

    @property
    def num_steps(self) -> int:
        return int(self.settings.get("num_steps", PIPELINE["train.num_steps"]))

    @property
    def checkpoint_every(self) -> int:
        return int(self.settings.get("checkpoint_every", PIPELINE["train.checkpoint_every"]))


_SIGNALS = {"denoiser.max_images": 2, "denoiser.similarity": True, "denoiser.conditioning": "both"}
TRAININGS = (
    Training("tiny", {}),
    Training("signals", {**SMALL_NET, **_SIGNALS, "num_steps": 50, "checkpoint_every": 25}),
    Training("film", {**SMALL_NET, "denoiser.conditioning": "film"}),
    Training("eps", {**SMALL_NET, "prediction": "eps"}),
    Training("x", {**SMALL_NET, **_SIGNALS, "prediction": "x"}),
    Training("micro-batches", {**SMALL_NET, **_SIGNALS, "micro_batch_size": 3}),
    Training("no-prefetch", {**SMALL_NET, "prefetch": 0, "seed": 7}),
    Training("recompute", {**SMALL_NET, **_SIGNALS, "compute.recompute": "transformer"}),
    Training("bfloat16", {**SMALL_NET, "compute.precision": "bfloat16"}),
)


@dataclass(frozen=True)
class Trained:
    """Figures of a training: loss and gradient norm of each step as float.hex, digests of the last weights, EMA and optimizer."""

    losses: list[str]
    norms: list[str]
    weights: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "norms": self.norms, "weights": self.weights}


def weights_of(checkpoint: Path) -> dict[str, str]:
    """File -> digest of the tensors in it (name, shape, bytes), whatever their order in the file."""
    found = {}
    for name in ("model", "ema", "optimizer"):
        digest = hashlib.sha256()
        for key, tensor in sorted(load_file(checkpoint / f"{name}.safetensors").items()):
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes())
        found[name] = digest.hexdigest()
    return found


def history_of(folder: Path) -> tuple[list[str], list[str]]:
    """(losses, gradient norms) of the output of a training by Ray."""
    history = json.loads((folder / "history.json").read_text())
    return [float(h["loss"]).hex() for h in history], [float(h["grad_norm"]).hex() for h in history]


# --- Samples. ---

REFINEMENTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "threshold": {"threshold": 0.9},
    "interval": {"interval": [-3.0, 3.0]},
    "rescale": {"rescale": 0.7},
    "momentum": {"momentum": -0.5},
    "projected": {"parallel": 0.0, "max_norm": 2.0, "momentum": -0.5},
    "request": {"request": 1.5},
    "no-request": {"request": 0.0},
    "all": {"threshold": 0.95, "interval": [-4.0, 4.0], "rescale": 0.5, "parallel": 0.3, "max_norm": 3.0, "momentum": 0.25},
}
"""Name -> fields of GuidanceConfig at f049af4."""
SAMPLERS = ("ddpm", "ddim", "ddim_invert", "dpm_solver")
NUM_ROWS, NUM_TOKENS, TOKEN_DIM, SIDE_PX, SAMPLE_STEPS = 3, 5, 32, 32, 6


@dataclass(frozen=True)
class Sample:
    """One call of a sampler with the raw weights of a training. edits: with a callback that adds 0.05 to z after each step."""

    sampler: str
    guidance: float = 0.5
    refinement: str = "plain"
    num_images: int = 1
    similarity: bool = False
    training: str = "signals"
    edits: bool = False
    sampler_settings: Mapping[str, Any] = field(default_factory=dict)  # fields of SamplerConfig at f049af4

    @property
    def name(self) -> str:
        parts = [self.training, self.sampler, f"w{self.guidance:g}", self.refinement, f"{self.num_images}-images"]
        parts += ["similarity"] * self.similarity + ["edits"] * self.edits
        return "/".join([*parts, *(f"{key}={value}" for key, value in self.sampler_settings.items())])


def _samples() -> Iterable[Sample]:
    for sampler in SAMPLERS:
        for num_images in (1, 2):
            for similarity in (False, True):
                yield Sample(sampler, 0.0, "plain", num_images, similarity)
                for refinement in REFINEMENTS:
                    yield Sample(sampler, 0.5, refinement, num_images, similarity)
        yield Sample(sampler, 0.0, "threshold")
        yield Sample(sampler, 3.0, "all", 2, True)
        for spacing in ("t", "logsnr"):
            yield Sample(sampler, sampler_settings={"spacing": spacing})
        yield Sample(sampler, sampler_settings={"clip": False})
        for training in ("tiny", "film", "eps", "x"):
            yield Sample(sampler, training=training)
        if sampler != "ddim_invert":
            yield Sample(sampler, edits=True)
            yield Sample(sampler, 0.5, "momentum", edits=True)
    yield Sample("ddpm", sampler_settings={"interpolation": 0.7})


SAMPLES = tuple(_samples())


@dataclass(frozen=True)
class Told:
    """What the rows are conditioned on, as tensors: (B, K, N, D), (B, K, P), (B, K), (B,)."""

    tokens: Tensor
    pooled: Tensor
    present: Tensor
    similarity: Tensor


def told(num_images: int, similarity: bool) -> Told:
    """Conditioning of NUM_ROWS rows: with two images the second row has one only; the last but one row asks for no similarity."""
    generator = torch.Generator().manual_seed(11)
    tokens = torch.randn((NUM_ROWS, 2, NUM_TOKENS, TOKEN_DIM), generator=generator)[:, :num_images]
    pooled = torch.randn((NUM_ROWS, 2, TOKEN_DIM), generator=generator)[:, :num_images]
    present = torch.ones((NUM_ROWS, num_images), dtype=torch.bool)
    if num_images == 2:
        present[1, 1] = False
    asked = torch.full((NUM_ROWS,), float("nan"))
    if similarity:
        asked = torch.tensor([0.8, float("nan"), 0.1])
    return Told(tokens.contiguous(), pooled.contiguous(), present, asked)


def noise_at(step: int) -> Tensor:
    """Standard normal for a step; -1: z at t = 1."""
    return torch.randn((NUM_ROWS, 3, SIDE_PX, SIDE_PX), generator=torch.Generator().manual_seed(1000 + step))


def pictures_to_invert() -> Tensor:
    """Pictures in [-1, 1] for ddim_invert."""
    return (noise_at(-2) / 2).clamp(-1, 1)


def figures_of(x: Tensor) -> dict[str, Any]:
    """sha256 of the bytes; mean and std beside it, for a person who looks at a difference."""
    assert x.dtype in (torch.float32, torch.uint8), x.dtype
    digest = hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()
    return {"sha256": digest, "mean": float(x.double().mean()), "std": float(x.double().std()), "shape": list(x.shape)}


# --- A released model and who loads it: arguments of `semantica.load(path)(...)` at f049af4. ---


@dataclass(frozen=True)
class Load:
    """what: a name in the folder of guards. images: how many of the crawl's pictures, or rows of several. beyond: a refinement."""

    what: str
    images: tuple[tuple[str, ...], ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    beyond: str = "plain"


_FIRST, _SECOND = "page-03/picture-2.png", "page-20/picture-5.png"
LOADS: Mapping[str, Load] = {
    "release": Load("release", ((_FIRST,), (_SECOND,)), {"num_steps": 4, "num_samples": 2}),
    "release/two-images": Load("release", ((_FIRST, _SECOND), (_SECOND,)), {"num_steps": 4, "num_samples": 1, "seed": 3}),
    "release/similarity": Load("release", ((_FIRST,),), {"num_steps": 4, "num_samples": 2, "similarity": 0.6}),
    "release/ddim": Load("release", ((_FIRST,),), {"num_steps": 4, "num_samples": 1, "sampler": "ddim", "guidance": 1.5}, "all"),
    "release/dpm": Load("release", ((_FIRST,),), {"num_steps": 4, "num_samples": 1, "sampler": "dpm_solver", "guidance": 0}),
    "checkpoint": Load("trainings/signals/50", ((_FIRST,),), {"num_steps": 4, "num_samples": 1}),
    "output-of-train": Load("run/checkpoint", ((_FIRST,),), {"num_steps": 4, "num_samples": 1}),
}


def figures_of_pictures(pictures: Any) -> Any:
    """Digest of every PIL picture, in the lists they come in."""
    if isinstance(pictures, list):
        return [figures_of_pictures(one) for one in pictures]
    return hashlib.sha256(np.asarray(pictures).tobytes()).hexdigest()


# --- What a run leaves. ---


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a stage's output, as plain data."""
    values: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return values


def hash_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON: what other stages' `inputs` hold."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


RUN_OF_REPORT = frozenset({"date", "commit", "versions", "command", "config"})
"""Names in report.json that say when, by what and how it was made. Settings are compared in the manifests."""
WORDS_OF_REPORT = frozenset({"title", "summary", "caption", "alt", "explanation", "x_label", "y_label"})
"""Names in report.json of sentences for people."""


def comparable(report: Any) -> Any:
    """A report.json without RUN_OF_REPORT and WORDS_OF_REPORT, wherever these names stand."""
    if isinstance(report, dict):
        return {key: comparable(value) for key, value in report.items() if key not in RUN_OF_REPORT | WORDS_OF_REPORT}
    return [comparable(value) for value in report] if isinstance(report, list) else report


def files_of(manifest: Mapping[str, Any]) -> list[Any]:
    """Path, size, SHA-256 and rows of the files of a manifest, but for those that say when or how fast they were made."""
    return [file for file in manifest["files"] if file["path"] not in ("report.html", "report.json", "history.json")]


def times_of(folder: Path) -> dict[str, int]:
    """Path -> time of the last change, of every file but those that tell of runs (`_run.json`, `_timing.json`) and of tracking."""
    files = (path for path in folder.rglob("*") if path.is_file())
    shown = {str(path.relative_to(folder)): path for path in files}
    return {
        name: path.stat().st_mtime_ns
        for name, path in shown.items()
        if path.name not in ("_run.json", "_timing.json") and not name.startswith(".tracking")
    }


def first_differences(old: Any, new: Any, where: str = "", most: int = 12) -> list[str]:
    """Up to `most` sentences that say where two values of plain data differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [f"{where}.{key}: is gone (was {str(old[key])[:80]})" for key in old if key not in new]
        found += [f"{where}.{key}: is new ({str(new[key])[:80]})" for key in new if key not in old]
        for key in (k for k in old if k in new):
            found += first_differences(old[key], new[key], f"{where}.{key}", most)
        return found[:most]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        found = []
        for index, pair in enumerate(zip(old, new, strict=True)):
            found += first_differences(*pair, f"{where}[{index}]", most)
        return found[:most]
    return [] if old == new or (old != old and new != new) else [f"{where}: was {str(old)[:160]}, is {str(new)[:160]}"]

"""A run of every stage that is small enough for tests, on pictures that are drawn here."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from semantica.config import override
from semantica.distributed.encode import encode
from semantica.distributed.evaluate import GivenSamples, evaluate_samples
from semantica.distributed.ingest import ingest
from semantica.distributed.pairs import pairs
from semantica.distributed.runtime import Runtime
from semantica.distributed.sample import generate
from semantica.distributed.train import MODEL, train
from semantica.evaluation.outcome import Sources
from semantica.presets import PipelineConfig, tiny
from semantica.training.start import open_inputs

NUM_PAGES, NUM_PICTURES = 12, 7


def draw_pages(root: Path, num_pages: int = NUM_PAGES, num_pictures: int = NUM_PICTURES) -> Path:
    """A folder tree: every page is a colour, its pictures are discs and bars of that colour."""
    for page in range(num_pages):
        folder = root / f"page-{page:02d}"
        folder.mkdir(parents=True)
        colour = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(page / num_pages, 0.9, 0.8))
        for index in range(num_pictures):
            image = Image.new("RGB", (48, 48), "white")
            draw = ImageDraw.Draw(image)
            size = 8 + 4 * (index % 7)
            shape = draw.ellipse if index % 2 else draw.rectangle
            left, top = 4 * (index // 7), 4 + index % 7
            shape((left, top, left + size, top + size), fill=colour)
            image.save(folder / f"picture-{index}.png")
    return root


def random_encoder(folder: Path, *, width: int = 32, layers: int = 2, image_px: int = 56) -> Path:
    """A DINOv2 of random weights in the folder format of a hub: real code, no download."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "image_size": image_px, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder, safe_serialization=True)
    return folder


@dataclass(frozen=True)
class SmallRun:
    """A finished run: where everything is, and the configuration that made it."""

    out: Path
    root: Path
    config: PipelineConfig
    runtime: Runtime

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.out}/mlflow.db"


def small_config(encoder: Path) -> PipelineConfig:
    """`tiny`, made smaller still."""
    return override(
        tiny(),
        {
            "ingest.image.image_px": 32,
            "ingest.read.pages_per_part": 4,
            "encode.encoder.weights": str(encoder),
            "encode.encoder.image_px": 28,
            "encode.batch_size": 16,
            "band.low": -1.0,
            "band.high": 1.0,
            "train.denoiser.token_dim": 32,
            "train.denoiser.num_tokens": 5,
            "train.denoiser.pooled_dim": 32,
            "train.denoiser.stages": [
                {"channels": 16, "num_blocks": 1, "kind": "conv"},
                {"channels": 32, "num_blocks": 1, "kind": "transformer"},
            ],
            "train.denoiser.noise_embedding_dim": 32,
            "train.denoiser.patch_px": 2,
            "train.num_steps": 6,
            "train.optimizer.eps": 1e-8,  # at the paper's 1e-12 a weight without a gradient moves as its rounding errors say
            "train.batch_size": 8,
            "train.num_lanes": 2,
            "train.log_every": 2,
            "train.checkpoint_every": 3,
            "generate.num_conditions": 6,
            "generate.sampler.num_steps": 3,
            "generate.guidance": [0.0, 0.5],
            "evaluate.inception": False,
            "evaluate.perceptual": False,
        },
    )


def run_stages(config: PipelineConfig, root: Path, out: Path, runtime: Runtime) -> None:
    """The stages as the jobs call them."""
    picture_facts = [("drawn pictures", "these tests", "CC0")]
    ingest(config.ingest, root=root, out=out / "episodes", runtime=runtime, pictures=picture_facts)
    encode(config.encode, episodes=out / "episodes", out=out / "encodings", runtime=runtime)
    pairs(config.band, encodings=out / "encodings", out=out / "selection", scores=None, runtime=runtime)
    train(config.train, open_inputs(config.train, out / "encodings", out / "selection"), out=out / "checkpoint", runtime=runtime)
    model = out / "checkpoint" / MODEL
    generate(config.generate, checkpoint=model, encodings=out / "encodings", out=out / "samples", runtime=runtime)
    evaluate_samples(
        config.evaluate,
        GivenSamples(out / "samples", model, out / "encodings"),
        out=out / "evaluation",
        runtime=runtime,
        sources=Sources(episodes=out / "episodes", selection=out / "selection"),
    )

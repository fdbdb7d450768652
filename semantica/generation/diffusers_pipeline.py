"""A trained model as a pipeline of the diffusers library, with a scheduler of the paper's sampler.

In: what `semantica.load` returns. Out: an `ImagePipelineOutput`. Binding, guidance and sampler steps are the project's own
functions, so the pictures are those of `semantica.load` bit for bit when the noise is the same (`SemanticaPipeline.generators`).
diffusers' guidance_scale is 1 + w: 1 is none. diffusers is an extra of this package and is imported by this module only.

Both are saved in one format, `release.py`'s. diffusers' own format does not fit: its `DiffusionPipeline.from_pretrained` finds
classes inside diffusers only and treats others as remote code; and it stores the weights of every component, while a release names
its encoder, whose weights are not ours to publish, by hash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

try:
    from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.utils import BaseOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError:
    raise ImportError("semantica.generation.diffusers_pipeline needs diffusers: pip install 'semantica[diffusers]'") from None

from semantica.conditioning.values import Conditioning
from semantica.config import require
from semantica.denoiser.uvit import Prepared, UViT
from semantica.diffusion.guidance import guided
from semantica.diffusion.keyed_random import sample_generator
from semantica.diffusion.process import bind_with, diffuse, x_from
from semantica.diffusion.samplers import apply_callback, ddpm_step, step_levels
from semantica.diffusion.schedule import logsnr
from semantica.diffusion.settings import SamplerConfig, ScheduleConfig
from semantica.errors import ConfigError
from semantica.generation.conditioning_images import rows_of
from semantica.generation.generate import SampleCallback, SampleStep, to_pixels
from semantica.generation.pipeline import Semantica, load, pil_pictures
from semantica.generation.settings import SpeedConfig

Generators = torch.Generator | list[torch.Generator] | None
PREDICTIONS: dict[str, Literal["v", "eps", "x"]] = {"v_prediction": "v", "epsilon": "eps", "sample": "x"}


@dataclass
class SchedulerOutput(BaseOutput):  # type: ignore[misc]
    """prev_sample: z at the next level. pred_original_sample: x_hat, clipped when the scheduler clips."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class SemanticaScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Ancestral DDPM with interpolated variance on the shifted cosine schedule: the steps of `samplers.ddpm`.

    Time is continuous: `timesteps` are t in (0, 1], falling from 1, not indices. The network takes logsnr: `logsnr(timestep, z)`.
    prediction_type says what `step` is given; the pipeline gives x_hat ("sample"), since guidance combines x_hat here.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        resolution_px: int,
        noise_resolution_px: int = 32,
        logsnr_min: float = -15.0,
        logsnr_max: float = 15.0,
        interpolation: float = 0.2,
        clip_sample: bool = True,
        prediction_type: str = "sample",
    ) -> None:
        require(prediction_type in PREDICTIONS, "prediction_type", f"one of {', '.join(PREDICTIONS)}", prediction_type)
        self.schedule = ScheduleConfig(
            resolution_px=resolution_px,
            noise_resolution_px=noise_resolution_px,
            logsnr_min=float(logsnr_min),
            logsnr_max=float(logsnr_max),
        )
        self.set_timesteps(256)

    @classmethod
    def of(cls, schedule: ScheduleConfig, sampler: SamplerConfig) -> SemanticaScheduler:
        """The scheduler of `ddpm` with these settings. Raises ConfigError for another sampler or spacing."""
        if sampler.name != "ddpm" or sampler.spacing not in (None, "t"):
            raise ConfigError(f"SemanticaScheduler: sampler must be ddpm with steps equal in t, got {sampler.name}; pass another")
        made: SemanticaScheduler = cls(
            resolution_px=schedule.resolution_px,
            noise_resolution_px=schedule.noise_resolution_px,
            logsnr_min=schedule.logsnr_min,
            logsnr_max=schedule.logsnr_max,
            interpolation=sampler.interpolation,
            clip_sample=sampler.clip,
        )
        return made

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Lay out the steps; `timesteps` (num_inference_steps,) in order of use."""
        require(num_inference_steps >= 1, "num_inference_steps", "at least 1", num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self._levels = step_levels(self.schedule, num_inference_steps, "t")  # float64 on the host
        self.timesteps = torch.linspace(1, 0, num_inference_steps + 1)[:-1].to(device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The sample itself, as the network takes it."""
        return sample

    def logsnr(self, timestep: Tensor | float, z: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The level at a timestep of `timesteps`, one entry per row of z."""
        return self._level(self._index(timestep), z)

    def step(
        self,
        model_output: Float[Tensor, "b c h w"],
        timestep: Tensor | float,
        sample: Float[Tensor, "b c h w"],
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """z at the next level from the model's output at this level; the last step returns x_hat."""
        index = self._index(timestep)
        logsnr_t = self._level(index, sample)
        x_hat = x_from(PREDICTIONS[self.config.prediction_type], sample, model_output, logsnr_t)
        if self.config.clip_sample:
            x_hat = x_hat.clamp(-1, 1)
        if index == self.num_inference_steps - 1:
            z = x_hat
        else:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            z = ddpm_step(sample, x_hat, logsnr_t, self._level(index + 1, sample), noise, self.config.interpolation)
        return SchedulerOutput(prev_sample=z, pred_original_sample=x_hat) if return_dict else (z, x_hat)

    def add_noise(
        self, original_samples: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], timesteps: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """z = alpha x + sigma eps at times t in [0, 1], one per picture."""
        levels = logsnr(timesteps.cpu().double(), self.schedule).to(original_samples)
        return diffuse(original_samples, noise, levels)

    def _index(self, timestep: Tensor | float) -> int:
        index = round((1 - float(timestep)) * self.num_inference_steps)
        if not 0 <= index < self.num_inference_steps or abs(float(self.timesteps[index]) - float(timestep)) > 1e-6:
            raise ConfigError(f"timestep: must be one of scheduler.timesteps, got {float(timestep)}; call set_timesteps first")
        return index

    def _level(self, index: int, z: Tensor) -> Tensor:
        return self._levels[index].to(device=z.device, dtype=torch.promote_types(z.dtype, torch.float32)).expand(len(z))

    def __len__(self) -> int:
        return self.num_inference_steps


class SemanticaDenoiser(ModelMixin):  # type: ignore[misc]
    """The network as a model of diffusers, whose device and dtype a pipeline asks for. The same module, not a copy."""

    def __init__(self, network: UViT) -> None:
        super().__init__()
        self.network = network

    def prepare(self, cond: Conditioning) -> Prepared:
        """What the network computes of the conditioning, once for all steps."""
        return self.network.prepare(cond)

    def forward(self, z: Tensor, logsnr: Tensor, cond: Conditioning | Prepared) -> Tensor:
        """What the network predicts: v_hat, eps_hat or x_hat."""
        out: Tensor = self.network(z, logsnr, cond)
        return out


class SemanticaPipeline(DiffusionPipeline):  # type: ignore[misc]
    """`pipe(image, num_inference_steps, guidance_scale)` -> `.images`. Made by `from_pretrained` or `of`.

    Components: denoiser; scheduler; semantica, which is what `semantica.load` returned and holds the encoder and the release.
    `to` moves the denoiser; the encoder stays where it was loaded.
    """

    def __init__(self, denoiser: SemanticaDenoiser, scheduler: SemanticaScheduler, semantica: Semantica) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler, semantica=semantica)

    @classmethod
    def of(cls, semantica: Semantica) -> SemanticaPipeline:
        """The pipeline of a loaded model. A release with another sampler than DDPM gets DDPM's default settings."""
        sampler = semantica.release.sampler
        usual = sampler if sampler.name == "ddpm" and sampler.spacing in (None, "t") else SamplerConfig()
        scheduler = SemanticaScheduler.of(semantica.release.schedule, usual)
        scheduler.set_timesteps(usual.num_steps)
        return cls(SemanticaDenoiser(semantica.model.network), scheduler, semantica)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        device: str | None = None,
        encoder: str | Path | None = None,
        *,
        revision: str = "main",
        speed: SpeedConfig = SpeedConfig(),  # noqa: B008 - it is frozen
    ) -> SemanticaPipeline:
        """The pipeline of whatever `semantica.load` loads."""
        return cls.of(load(pretrained_model_name_or_path, device, encoder, revision=revision, speed=speed))

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """Write what `semantica.load` and `from_pretrained` read (`Semantica.save_pretrained`)."""
        saved: Path = self.semantica.save_pretrained(save_directory)
        return saved

    def push_to_hub(self, repo_id: str, private: bool = True) -> str:
        """Upload what `save_pretrained` writes; returns its address."""
        address: str = self.semantica.push_to_hub(repo_id, private)
        return address

    def generators(self, image: object, num_images_per_prompt: int = 1, seed: int = 0) -> list[torch.Generator]:
        """The generators whose noise is that of `semantica.load(...)(image, num_samples=num_images_per_prompt, seed=seed)`."""
        asked = self.semantica.asked(rows_of(image)[0], num_images_per_prompt)
        return [sample_generator(seed, name) for name in asked.names]

    @torch.no_grad()
    def __call__(
        self,
        image: object,
        num_inference_steps: int | None = None,
        guidance_scale: float | int = 1.5,
        num_images_per_prompt: int = 1,
        similarity: float | int | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        callback: SampleCallback | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """num_images_per_prompt pictures for each conditioning image; the pictures of one image are side by side.

        image: as `semantica.load(...)` takes it. guidance_scale: 1 + w. num_inference_steps: None is the scheduler's. output_type:
        "pil", "np" (B, H, W, 3) or "pt" (B, 3, H, W) in [0, 1]. callback: as `semantica.load(...)` takes it, called after every
        step but the last, with all samples at once. callback_on_step_end(pipe, index, timestep, {"latents": z}), as diffusers
        has it, is called after every step and may return another z. Raises ConfigError and DataError in one sentence.
        """
        require(guidance_scale >= 1, "guidance_scale", "1 (none) or more: it is 1 + w", guidance_scale)
        require(output_type in ("pil", "np", "pt"), "output_type", "pil, np or pt", output_type)
        asked = self.semantica.asked(rows_of(image)[0], num_images_per_prompt, similarity)
        cond = asked.cond.to(self.device)
        bind, signals = bind_with(self.denoiser, self.semantica.release.prediction), self.semantica.release.denoiser.signals
        denoise = guided(bind, cond, float(guidance_scale) - 1, signals=signals)
        self.scheduler.set_timesteps(num_inference_steps or self.scheduler.num_inference_steps, self.device)
        z = randn_tensor((len(cond), *self.semantica.model.shape), generator=generator, device=self.device, dtype=torch.float32)
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            for index, timestep in enumerate(self.scheduler.timesteps):
                x_hat = denoise(z, self.scheduler.logsnr(timestep, z))
                out = self.scheduler.step(x_hat, timestep, z, generator)
                z = out.prev_sample
                if callback is not None and index + 1 < len(self.scheduler):
                    level = self.scheduler.logsnr(self.scheduler.timesteps[index + 1], z)
                    reached = SampleStep(index, z, out.pred_original_sample, level, range(len(z)), tuple(asked.names))
                    z = apply_callback(callback, reached)
                if callback_on_step_end is not None:
                    z = callback_on_step_end(self, index, timestep, {"latents": z}).get("latents", z)
                bar.update()
        images = _as(output_type, z)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _as(output_type: str, x: Float[Tensor, "b c h w"]) -> list[Image.Image] | np.ndarray | Tensor:
    if output_type == "pil":
        return pil_pictures(to_pixels(x).cpu())
    unit = (x.clamp(-1, 1) + 1) / 2
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()

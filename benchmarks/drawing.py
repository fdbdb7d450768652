"""The ways of drawing that benchmarks.sampling compares: part by part from a plain loop to the house's path, for any network.

In: a Scene (what is drawn, at which size and precision, where) and a Way (whose network, how it is called). Out: a call that draws
the batch. The plain loop calls the network twice a step, a branch each, and has it read the conditioning every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.peers import OURS, Size, denoiser_config, random_conditioning, settled
from semantica.conditioning.values import Conditioning
from semantica.denoiser.configs import DenoiserConfig
from semantica.denoiser.uvit import UViT
from semantica.diffusion.guidance import guided
from semantica.diffusion.process import Bind, Denoise, bind_with, denoise_with
from semantica.diffusion.samplers import ddpm, levels_of
from semantica.diffusion.settings import SamplerConfig, ScheduleConfig
from semantica.generation.generate import SampleNoise, sample_pictures
from semantica.generation.model import Model
from semantica.generation.settings import GenerateConfig, SpeedConfig

W = 0.5


@dataclass(frozen=True)
class Way:
    """One line of the race: whose network, and how it is called."""

    contender: str = OURS
    one_batch: bool = False  # both branches
    once: bool = False  # keys and values, a picture
    compiled: bool = False
    pictures: bool = False  # through sample_pictures
    channels_last: bool = True

    @property
    def label(self) -> str:
        """Its name in the table."""
        if self.pictures:
            return "sample_pictures" + (", compiled" if self.compiled else "")
        names = {(False, False): "plain loop", (True, False): "one batch alone", (False, True): "keys and values once alone"}
        path = names.get((self.one_batch, self.once), "house's path")
        return f"{self.contender}, {path}" + (", compiled" if self.compiled else "")


PLAIN, HOUSE = Way(), Way(one_batch=True, once=True)


@dataclass(frozen=True)
class Scene:
    """What all ways draw: from this many conditions, by this sampler, at this size and precision, on this device."""

    size: Size
    batch: int
    num_steps: int
    device: str
    dtype: torch.dtype

    @property
    def shape(self) -> DenoiserConfig:
        """Of our denoiser."""
        return denoiser_config(self.size)

    @property
    def schedule(self) -> ScheduleConfig:
        """Of the resolution."""
        return ScheduleConfig(resolution_px=self.shape.resolution_px)

    @property
    def sampler(self) -> SamplerConfig:
        """The paper's, with so many steps."""
        return SamplerConfig(num_steps=self.num_steps)

    @property
    def names(self) -> list[str]:
        """Of the samples."""
        return [f"sample{index}" for index in range(self.batch)]

    def conditioning(self) -> Conditioning:
        """The same at every call."""
        torch.manual_seed(0)
        return random_conditioning(self.shape, self.batch, self.device)

    def noise(self) -> SampleNoise:
        """Keyed, from the start."""
        return SampleNoise(0, self.names, self.shape.shape, self.device)

    def speed(self, *, compiled: bool) -> SpeedConfig:
        """How the house draws here."""
        return SpeedConfig(precision="bfloat16" if self.dtype == torch.bfloat16 else "float32", compile=compiled)


def bind_every_step(network: nn.Module) -> Bind:
    """A Bind that prepares nothing: the network computes keys and values at every step."""
    return lambda cond: denoise_with(lambda z, logsnr: network(z, logsnr, cond))


def two_calls(bind: Bind, cond: Conditioning, w: float) -> Denoise:
    """Guidance with one call per branch."""
    conditional, unconditional = bind(cond), bind(cond.null())

    def combined(z: Tensor, logsnr: Tensor) -> Tensor:
        return (1 + w) * conditional(z, logsnr) - w * unconditional(z, logsnr)

    return combined


def guided_denoise(network: nn.Module, way: Way, cond: Conditioning) -> Denoise:
    """The guided Denoise of a network for that conditioning, called as `way` says."""
    bind = bind_with(network) if way.once else bind_every_step(network)  # type: ignore[arg-type]
    return guided(bind, cond, W) if way.one_batch else two_calls(bind, cond, W)


def built(way: Way, make: Callable[[], nn.Module], scene: Scene) -> nn.Module:
    """The network of a way on its device, in its precision and layout; the same weights at every call."""
    torch.manual_seed(0)
    network = settled(make()).eval()
    if isinstance(network, UViT):
        return Model(network, scene.schedule).on(scene.device, scene.speed(compiled=way.compiled)).network
    network = network.to(device=scene.device, dtype=scene.dtype)
    return network.to(memory_format=torch.channels_last) if way.channels_last else network


def drawing(way: Way, network: nn.Module, scene: Scene) -> Callable[[], Tensor]:
    """A call that draws the batch. Noise is drawn on the device, but for sample_pictures."""
    cond = scene.conditioning()
    if way.pictures:
        assert isinstance(network, UViT)
        model = Model(network, scene.schedule, device=torch.device(scene.device))
        settings = GenerateConfig(sampler=scene.sampler)
        return lambda: sample_pictures(model, cond, scene.names, W, settings, max_rows=2 * scene.batch)
    side = scene.shape.resolution_px

    def draw() -> Tensor:
        def noise(index: int) -> Tensor:
            return torch.randn(scene.batch, 3, side, side, device=scene.device)

        with torch.inference_mode():
            # Bound at every call: a run pays once for what it computes once.
            return ddpm(guided_denoise(network, way, cond), noise(0), levels_of(scene.sampler, scene.schedule), noise)

    return draw

"""What a user of a trained model needs: `semantica.load(path)(images, guidance=0.5, num_samples=4)`.

In: a released folder, a checkpoint, the output of semantica train, or a hub's ORG/NAME; then pictures. Out: samples, the same that
`generate` draws for the same conditioning and names; and the model, saved or uploaded to a hub.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, overload

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from semantica.conditioning.signals import SIMILARITY
from semantica.conditioning.values import Conditioning, SignalValues
from semantica.config import override, require
from semantica.data import hub
from semantica.denoiser.uvit import UViT
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.errors import ConfigError, DataError, WeightsError
from semantica.generation.conditioning_images import ConditioningImages, Picture, rows_of
from semantica.generation.generate import SampleCallback, sample_pictures
from semantica.generation.model import Model
from semantica.generation.model_card import model_card
from semantica.generation.release import Release, encoder_of, read_release, release_of, write_release
from semantica.generation.settings import GenerateConfig, SpeedConfig
from semantica.training.checkpoint import checkpoint_folder, open_checkpoint

S = TypeVar("S", bound="Semantica")

_MANIFEST = "manifest.json"  # of a checkpoint, which no release has


@dataclass(frozen=True)
class Asked:
    """One row per sample: its conditioning, and the name that keys its noise. Samples of one wanted picture are side by side."""

    cond: Conditioning
    names: list[str]


@dataclass(frozen=True)
class Semantica:
    """A trained model, ready to draw: `model(images)`. `semantica.load` returns it with the applications as methods (Editor).

    card: the model card; it is saved with the model as it is, edited or not.
    """

    model: Model
    conditioning: ConditioningImages
    release: Release
    card: str

    @classmethod
    def from_pretrained(
        cls: type[S],
        path: str | Path,
        device: str | None = None,
        encoder: str | Path | None = None,
        *,
        revision: str = "main",
        picture_px: int | None = None,
        speed: SpeedConfig = SpeedConfig(),  # noqa: B008 - it is frozen
    ) -> S:
        """The model at `path`: a released folder, a checkpoint, the output of semantica train, or a hub's ORG/NAME.

        device: None is a GPU where there is one. encoder: the folder of the encoder, for a model that was trained with a local one.
        revision: of a hub's model. picture_px: image_px of the ingest of its training pictures, where the release does not know it.
        Raises WeightsError for what is missing or damaged, and for another encoder than that of the training.
        """
        release, network, card = opened(path, revision)
        if picture_px is not None:
            require(picture_px >= 1, "load: picture_px", "at least 1", picture_px)
            release = replace(release, picture_px=picture_px)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = Model(network, release.schedule, release.prediction).on(device, speed)
        eye = encoder_of(release.encoder, device, encoder)
        return cls(model, ConditioningImages(eye, release.denoiser.max_images, release.picture_px), release, card)

    @overload
    def __call__(  # type: ignore[overload-overlap] # a str is a sequence of str too
        self,
        images: Picture,
        guidance: float | int = ...,
        num_samples: int = ...,
        similarity: float | int | None = ...,
        num_steps: int | None = ...,
        sampler: str | SamplerConfig | None = ...,
        seed: int = ...,
        beyond: GuidanceConfig = ...,
        callback: SampleCallback | None = ...,
        signals: Mapping[str, Tensor] | None = ...,
    ) -> list[Image.Image]: ...

    @overload
    def __call__(
        self,
        images: Sequence[Picture | Sequence[Picture]],
        guidance: float | int = ...,
        num_samples: int = ...,
        similarity: float | int | None = ...,
        num_steps: int | None = ...,
        sampler: str | SamplerConfig | None = ...,
        seed: int = ...,
        beyond: GuidanceConfig = ...,
        callback: SampleCallback | None = ...,
        signals: Mapping[str, Tensor] | None = ...,
    ) -> list[list[Image.Image]]: ...

    def __call__(
        self,
        images: object,
        guidance: float | int = 0.5,
        num_samples: int = 4,
        similarity: float | int | None = None,
        num_steps: int | None = None,
        sampler: str | SamplerConfig | None = None,
        seed: int = 0,
        beyond: GuidanceConfig = GuidanceConfig(),  # noqa: B008 - it is frozen
        callback: SampleCallback | None = None,
        signals: Mapping[str, Tensor] | None = None,
    ) -> list[Image.Image] | list[list[Image.Image]]:
        """num_samples new pictures for each conditioning image: a list for one image, a list of lists for a list of images.

        images: a PIL picture or a path; a list of these; or, where an item is a list itself, the several conditioning images of one
        wanted picture. guidance: the paper's w, 0 is none. similarity: how similar to the images, for models trained to be told.
        sampler: "ddpm", "ddim", "dpm_solver" or a SamplerConfig; None, and num_steps None: as the release says. beyond: what goes
        beyond plain guidance. signals: what else the model was trained to be told, one value (B, ...) per wanted picture; a signal
        that is left out is absent.

        callback(step) is called after every step but the last; it returns the z to go on with: `step.z`, or an edited one. step
        holds index, z (B, C, H, W), the x_hat of the step, logsnr (B,), samples and names. Samples are drawn in chunks that fit
        in memory, one chunk after the other, so B may be smaller than the number of samples: row i is sample `step.samples[i]`
        of all, where sample `k` is that of image `k // num_samples`. When a chunk does not fit after all, it begins again in two
        halves, from index 0. An edit that draws noise should key it by `step.names` (`keyed_generator(..., name, step.index)`).

        The noise of a sample is keyed by seed, the pixels of its conditioning images and its index: the first of more samples are
        those of fewer, and a picture's samples do not depend on what else is in the list; except for rounding, since another batch
        size sums in another order (a level of 255 here and there). Raises DataError and ConfigError in one sentence.
        """
        steps = self.sampler(sampler, num_steps)
        require(math.isfinite(guidance) and guidance >= 0, "guidance", "0 or more", guidance)
        rows, is_single = rows_of(images)
        asked = self.asked(rows, num_samples, similarity, signals)
        config = GenerateConfig(guidance=(float(guidance),), sampler=steps, beyond=beyond, seed=seed)
        if not rows:
            return []
        drawn = sample_pictures(self.model, asked.cond, asked.names, float(guidance), config, callback=callback)
        pictures = pil_pictures(drawn)
        lists = [pictures[i : i + num_samples] for i in range(0, len(pictures), num_samples)]
        return lists[0] if is_single else lists

    def asked(
        self,
        rows: Sequence[Sequence[object]],
        num_samples: int,
        similarity: float | int | None = None,
        signals: Mapping[str, Tensor] | None = None,
    ) -> Asked:
        """The conditioning and the names of num_samples samples for each row of conditioning images."""
        require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        cond, names = self.conditioning(rows)
        cond = self.told(cond, similarity, signals)
        repeated = torch.arange(len(cond)).repeat_interleave(num_samples)
        return Asked(cond[repeated], [f"{name}/{index}" for name in names for index in range(num_samples)])

    def told(self, cond: Conditioning, similarity: float | int | None, signals: Mapping[str, Tensor] | None) -> Conditioning:
        """The conditioning with a requested similarity and further signals. Raises ConfigError for what the model is not told."""
        if similarity is not None:
            if not self.release.denoiser.similarity:
                raise ConfigError("similarity: this model was not trained to be told one; leave it out, or load one that was")
            require(-1 <= similarity <= 1, "similarity", "a cosine, in [-1, 1]", similarity)
            cond = cond.told(SIMILARITY, torch.full((len(cond),), float(similarity)))
        for name, values in (signals or {}).items():
            cond = cond.told(name, self._signal(name, values, len(cond)))
        return cond

    def _signal(self, name: str, values: Tensor, num: int) -> SignalValues:
        declared = {signal.name: signal for signal in self.release.denoiser.signals}
        if name not in declared:
            known = f"it is told {', '.join(declared)}" if declared else "it is told images only"
            raise ConfigError(f"signals: this model was not trained to be told {name!r}; {known}")
        shape = (num, *declared[name].shape(self.release.denoiser.resolution_px))
        require(values.shape == shape, f"signals[{name!r}]", f"one value per wanted picture, shape {shape}", tuple(values.shape))
        return SignalValues.of(declared[name], values)

    def sampler(self, sampler: str | SamplerConfig | None, num_steps: int | None) -> SamplerConfig:
        """The release's sampler, with another name or number of steps, or another sampler. Raises ConfigError."""
        chosen = sampler if isinstance(sampler, SamplerConfig) else self.release.sampler
        changes = {"name": sampler if isinstance(sampler, str) else None, "num_steps": num_steps}
        try:
            return override(chosen, {name: value for name, value in changes.items() if value is not None})
        except ConfigError as error:
            raise ConfigError(f"sampler: {error}") from None

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json, model.safetensors and README.md into a folder: new, empty, or a released model, which is replaced.

        The saved model draws the same pictures, bit for bit. Raises ConfigError for a folder that holds something else, and for a
        model that was loaded in bfloat16.
        """
        target = Path(folder).expanduser()
        write_release(target, self.model.network, self.release, self.card)
        return target

    def push_to_hub(self, name: str, private: bool = True) -> str:
        """Upload what `save_pretrained` writes to the hub as ORG/NAME; returns its address. Raises WeightsError."""
        with tempfile.TemporaryDirectory() as scratch:
            return hub.push(self.save_pretrained(Path(scratch) / "model"), name, private=private)


load = Semantica.from_pretrained


def opened(path: str | Path, revision: str = "main") -> tuple[Release, UViT, str]:
    """What is known of the model at `path`, its EMA network on the CPU, and its model card. Raises WeightsError."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if not hub.is_hub_name(str(path)):
            raise WeightsError(
                f"load: no folder {path}; give a released model, a checkpoint, the output of semantica train, or ORG/NAME"
            )
        try:
            folder = hub.fetch(str(path), revision)
        except WeightsError as error:
            raise WeightsError(f"load: {error}") from None
    folder = trained(folder)
    if not (folder / _MANIFEST).exists():
        return read_release(folder)
    checkpoint = open_checkpoint(folder)
    release = release_of(checkpoint)
    return release, checkpoint.network(), model_card(release)


def trained(folder: Path) -> Path:
    """The checkpoint at or below the folder; any other folder as it is."""
    try:
        return checkpoint_folder(folder)
    except DataError:
        return folder


def pil_pictures(pictures: UInt8[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """The same as PIL pictures."""
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]

"""Checkpoints: safetensors for weights, EMA and optimizer, JSON for the rest, a manifest with SHA-256 of every file last.

A folder with a manifest whose hashes hold is a checkpoint; anything else is refused by name. Nothing pickled is ever opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from semantica.config import from_dict, to_dict
from semantica.denoiser.uvit import UViT
from semantica.errors import ConfigError, WeightsError
from semantica.storage import file_sha256, write_atomically
from semantica.training.ema import Ema
from semantica.training.recipe import TrainConfig

FORMAT = 1
_MANIFEST = "manifest.json"
_MODEL, _EMA, _OPTIMIZER, _CONFIG = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "config.json"


@dataclass(frozen=True)
class Provenance:
    """What the weights were trained on: the encoder (identity and configuration), the manifest hashes of encodings and selection,
    and the mean pooled embedding of the training pictures, which a mean-centred similarity subtracts.
    """

    encoder: Mapping[str, Any]
    encodings: str
    selection: str
    corpus_mean: tuple[float, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint opened for use: its resolved configuration, how far it got, and where its tensors are."""

    folder: Path
    config: TrainConfig
    step: int
    provenance: Provenance

    @property
    def hash(self) -> str:
        """SHA-256 of the manifest, which holds the SHA-256 of every other file."""
        return file_sha256(self.folder / _MANIFEST)

    def network(self, *, ema: bool = True) -> UViT:
        """The denoiser with EMA or raw weights, in eval mode."""
        network = UViT(self.config.denoiser)
        _load_strictly(network, self._tensors(_EMA if ema else _MODEL), self.folder)
        return network.eval()

    @torch.no_grad()
    def restore(self, network: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, EMA and optimizer state back in place, to go on at `step`."""
        _load_strictly(network, self._tensors(_MODEL), self.folder)
        average = self._tensors(_EMA)
        _check_names(ema.values, average, self.folder)
        for name, value in average.items():
            ema.values[name].copy_(value)
        ema.num_updates = self.step
        state = self._tensors(_OPTIMIZER)
        for name, parameter in network.named_parameters():
            optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step), device=parameter.device),
                # In the weight's own layout of memory: fused Adam walks all of them in one order.
                "exp_avg": torch.empty_like(parameter).copy_(state[f"exp_avg/{name}"]),
                "exp_avg_sq": torch.empty_like(parameter).copy_(state[f"exp_avg_sq/{name}"]),
            }

    def _tensors(self, name: str) -> dict[str, Tensor]:
        try:
            tensors: dict[str, Tensor] = load_file(self.folder / name)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"checkpoint: {self.folder / name} is not readable ({error})") from None
        return tensors


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    *,
    config: TrainConfig,
    step: int,
    provenance: Provenance,
) -> None:
    """Write a checkpoint after `step` steps into an empty folder; the manifest comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_contiguous(dict(network.named_parameters())), folder / _MODEL)
    save_file(_contiguous(ema.values), folder / _EMA)
    moments: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        state = optimizer.state[parameter]
        moments |= {f"exp_avg/{name}": state["exp_avg"], f"exp_avg_sq/{name}": state["exp_avg_sq"]}
    save_file(_contiguous(moments), folder / _OPTIMIZER)
    described = {"config": to_dict(config), "step": step, "provenance": provenance.__dict__, "format": FORMAT}
    write_atomically(folder / _CONFIG, json.dumps(described, indent=1).encode())
    files = {name: file_sha256(folder / name) for name in (_MODEL, _EMA, _OPTIMIZER, _CONFIG)}
    write_atomically(folder / _MANIFEST, json.dumps(files, indent=1).encode())


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, every file checked against its hash. Raises WeightsError naming what is missing or damaged."""
    manifest = folder / _MANIFEST
    mend = "use an earlier checkpoint, or delete the output of jobs.train and run it again"
    if not manifest.exists():
        raise WeightsError(f"checkpoint: {folder} has no {_MANIFEST}, so it is no finished checkpoint; run jobs.train")
    try:
        expected = dict(json.loads(manifest.read_text()))
    except (ValueError, TypeError):
        expected = {}
    if "kind" in expected and (folder / "model" / _MANIFEST).exists():
        raise WeightsError(f"checkpoint: {folder} is the whole output of jobs.train; its checkpoint is {folder / 'model'}")
    if expected.keys() != {_MODEL, _EMA, _OPTIMIZER, _CONFIG}:
        raise WeightsError(f"checkpoint: {manifest} is damaged; {mend}")
    for name, sha256 in expected.items():
        path = folder / name
        if not path.exists() or file_sha256(path) != sha256:
            what = "is missing" if not path.exists() else "is damaged (its SHA-256 is not the manifest's)"
            raise WeightsError(f"checkpoint: {path} {what}; {mend}")
    described = json.loads((folder / _CONFIG).read_text())
    if described.get("format") != FORMAT:
        raise WeightsError(f"checkpoint: {folder} has format {described.get('format')}, expected {FORMAT}")
    try:
        config = from_dict(TrainConfig, described["config"])
        return Checkpoint(folder, config, int(described["step"]), _provenance(described["provenance"]))
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise WeightsError(f"checkpoint: {folder / _CONFIG} is not a configuration this version reads ({error})") from None


def _provenance(values: Mapping[str, Any]) -> Provenance:
    return Provenance(**{**values, "corpus_mean": tuple(values["corpus_mean"])})


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _check_names(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], folder: Path) -> None:
    if expected.keys() != tensors.keys():
        odd = sorted(expected.keys() ^ tensors.keys())[:3]
        raise WeightsError(f"checkpoint: {folder} does not fit its own configuration; tensors that differ: {odd}")


def _load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    parameters = dict(network.named_parameters())
    _check_names(parameters, tensors, folder)
    with torch.no_grad():
        for name, value in tensors.items():
            if parameters[name].shape != value.shape:
                raise WeightsError(
                    f"checkpoint: {folder}: {name} must be {tuple(parameters[name].shape)}, got {tuple(value.shape)}"
                )
            parameters[name].copy_(value)

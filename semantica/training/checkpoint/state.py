"""The state of a training: as it lives (`TrainState`), as a copy in host memory (`Snapshot`), as a folder on disk (`Checkpoint`).

In: network, EMA and optimizer of a training, of which this worker has all or its rows. Out: a snapshot, which is all that the
training waits for in a save; and from a checkpoint, the network, or a training that resumes at its step. Nothing pickled is opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semantica.config import to_dict
from semantica.config.identity import from_record
from semantica.data.location import file_sha256
from semantica.denoiser.uvit import UViT
from semantica.errors import ConfigError, WeightsError
from semantica.training.checkpoint.format import CONFIG, MANIFEST, FileEntry, Piece, checked_files, read_pieces, share
from semantica.training.ema import Ema
from semantica.training.parallel import local, place
from semantica.training.recipe import TrainConfig


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
class Snapshot:
    """What worker `rank` of `world` writes of a training after `step` steps. Nothing in it changes while the training goes on.

    pieces: kind -> name -> rows, on the CPU. described: the content of config.json.
    """

    step: int
    pieces: Mapping[str, Mapping[str, Piece]]
    described: Mapping[str, Any]
    rank: int = 0
    world: int = 1


class HostMemory:
    """Memory that one snapshot after the other is copied to: the pages are there already, and pinned when they come from a GPU.

    It holds as many bytes as a checkpoint has, for as long as the training runs.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def copy(self, key: str, tensor: Tensor) -> Tensor:
        """The values of a tensor, contiguous, in the memory held under the key. From a GPU they arrive by the next synchronize."""
        held = self._held.get(key)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._held[key] = held
        return held.copy_(tensor.detach(), non_blocking=True)


def copied(tensors: Mapping[str, Mapping[str, Tensor]], memory: HostMemory, rank: int, world: int) -> dict[str, dict[str, Piece]]:
    """The rows of worker `rank` of every kind of tensors, in host memory. All values are there when this returns."""
    pieces: dict[str, dict[str, Piece]] = {}
    on_gpu = False
    with torch.no_grad():
        for kind, named in tensors.items():
            pieces[kind] = {}
            for name, piece in share(named, rank, world).items():
                on_gpu |= piece.tensor.is_cuda
                pieces[kind][name] = Piece(memory.copy(f"{kind}/{name}", piece.tensor), piece.start, piece.rows)
    if on_gpu:
        torch.cuda.synchronize()
    return pieces


@dataclass(frozen=True)
class TrainState:
    """A training after `step` steps, as it lives: the tensors are those that the next step changes."""

    network: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    step: int
    provenance: Provenance
    counters: Mapping[str, int] = field(default_factory=dict)  # what else the loop wants to know again

    def snapshot(self, memory: HostMemory | None = None, *, metric: float | None = None, rank: int = 0, world: int = 1) -> Snapshot:
        """A copy in host memory of what worker `rank` of `world` writes. With `memory`, valid until the next one in it.

        A worker with sharded weights writes the rows that it has, no others: rank and world are those of its `Sharing`.
        """
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": dict(self.network.named_parameters()),
            "ema": self.ema.values,
            "optimizer": self._moments(),
        }
        states = self.optimizer.state.values()
        described = {
            "config": to_dict(self.config),
            "step": self.step,
            "provenance": self.provenance.__dict__,
            "metric": metric if metric is not None and math.isfinite(metric) else None,
            # Not the step: a step that was skipped counts in neither.
            "num_ema_updates": self.ema.num_updates,
            "num_optimizer_updates": int(max((float(state["step"]) for state in states), default=0.0)),
            "counters": dict(self.counters),
        }
        pieces = copied(tensors, memory or HostMemory(), rank, world)
        return Snapshot(step=self.step, pieces=pieces, described=described, rank=rank, world=world)

    def _moments(self) -> dict[str, Tensor]:
        """Adam's two moments of every weight; zeros before the first update."""
        moments: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            state = self.optimizer.state.get(parameter) or {}
            for moment in ("exp_avg", "exp_avg_sq"):
                moments[f"{moment}/{name}"] = state[moment] if moment in state else torch.zeros_like(parameter)
        return moments


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint opened for use: its resolved configuration, how far it got, and where its tensors are."""

    folder: Path
    config: TrainConfig
    step: int
    provenance: Provenance
    metric: float | None
    counters: Mapping[str, int]
    num_ema_updates: int
    num_optimizer_updates: int
    files: tuple[FileEntry, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of the manifest, which holds the SHA-256 of every other file."""
        return file_sha256(self.folder / MANIFEST)

    def network(self, *, ema: bool = True) -> UViT:
        """The denoiser with EMA or raw weights, in eval mode."""
        network = UViT(self.config.denoiser)
        self._load("ema" if ema else "model", dict(network.named_parameters()))
        return network.eval()

    @torch.no_grad()
    def restore(self, network: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, EMA and optimizer state back in place, to go on at `step`.

        Of sharded weights a worker reads its own rows, however many workers wrote them, and has nothing whole at any time.
        """
        self._load("model", dict(network.named_parameters()))
        self._load("ema", ema.values)
        ema.num_updates = self.num_ema_updates
        moments: dict[str, Tensor] = {}
        for name, parameter in network.named_parameters():
            # In the weight's own layout of memory: fused Adam walks all of them in one order.
            first, second = torch.empty_like(parameter), torch.empty_like(parameter)
            count = torch.tensor(float(self.num_optimizer_updates), device=parameter.device)
            optimizer.state[parameter] = {"step": count, "exp_avg": first, "exp_avg_sq": second}
            moments |= {f"exp_avg/{name}": first, f"exp_avg_sq/{name}": second}
        self._load("optimizer", moments)

    @torch.no_grad()
    def _load(self, kind: str, into: Mapping[str, Tensor]) -> None:
        """Fill the tensors of a kind, all of them and no others, with their rows."""
        rank, world = place(next(iter(into.values())))
        pieces = self._pieces(kind, rank, world)
        if into.keys() != pieces.keys():
            odd = sorted(into.keys() ^ pieces.keys())[:3]
            raise WeightsError(f"checkpoint: {self.folder} does not fit its own configuration; tensors that differ: {odd}")
        for name, tensor in into.items():
            piece = pieces[name]
            shape = piece.tensor.shape if piece.rows is None else (piece.rows, *piece.tensor.shape[1:])
            if tuple(tensor.shape) != tuple(shape):
                raise WeightsError(f"checkpoint: {self.folder}: {name} must be {tuple(tensor.shape)}, got {tuple(shape)}")
            local(tensor).copy_(piece.tensor)

    def tensors(self, kind: str, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """The rows of worker `rank` of `world` of all tensors of a kind (model, ema or optimizer), however many wrote them."""
        return {name: piece.tensor for name, piece in self._pieces(kind, rank, world).items()}

    def _pieces(self, kind: str, rank: int, world: int) -> dict[str, Piece]:
        return read_pieces([self.folder / file.name for file in self.files if file.kind == kind], rank, world)


def open_checkpoint(folder: Path, *, verify: bool = True) -> Checkpoint:
    """The checkpoint in a folder. Raises WeightsError naming the file that is missing or damaged.

    verify: compare every file with its hash, which reads all of it. One process does that for all that then use the checkpoint; the
    others give False and compare sizes only.
    """
    files = checked_files(folder, verify=verify)
    try:
        described = json.loads((folder / CONFIG).read_text())
        return Checkpoint(
            folder=folder,
            config=from_record(TrainConfig, described["config"]),
            step=int(described["step"]),
            provenance=_provenance(described["provenance"]),
            metric=described["metric"],
            counters=described["counters"],
            num_ema_updates=int(described["num_ema_updates"]),
            num_optimizer_updates=int(described["num_optimizer_updates"]),
            files=files,
        )
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise WeightsError(f"checkpoint: {folder / CONFIG} is not a configuration this version reads ({error})") from None


def _provenance(values: Mapping[str, Any]) -> Provenance:
    return Provenance(**{**values, "corpus_mean": tuple(values["corpus_mean"])})

"""What a training starts from: its pairs, the weights of another model, or its own last checkpoint, to be made longer.

In: encodings and a selection; the folder of a checkpoint or of a release, or the release's name on a hub; the output of an earlier
training. Out: `TrainingInputs`, with `InitialWeights`, which the loop takes in place of a checkpoint and which leave the optimizer
and the step at 0; how many steps an output has done, and that output made ready to take more of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from semantica.config.identity import differences
from semantica.data import hub
from semantica.data.durable import appearing, new_attempt
from semantica.data.location import Location, file_sha256
from semantica.denoiser.configs import DenoiserConfig
from semantica.denoiser.uvit import UViT
from semantica.errors import DataError, FieldError, WeightsError
from semantica.pairs.loader import SelectedPairs, open_pairs
from semantica.training.checkpoint import CONFIG, MANIFEST, Keeper, checkpoint_folder
from semantica.training.checkpoint.format import checked_files, read_pieces
from semantica.training.ema import Ema
from semantica.training.parallel import local, place
from semantica.training.recipe import KeepConfig, TrainConfig

MODEL, CHECKPOINTS = "model", "checkpoints"  # in the output of semantica train
_RELEASED = "model.safetensors"  # of a release
_MANY = 2**40  # workers, of whom the first has one row of each tensor: enough to learn all shapes
_SHOWN = 4


@dataclass(frozen=True)
class InitialWeights:
    """Weights that a training begins with, at step 0 and with a fresh optimizer.

    hash: of the checkpoint, or of a release's weights. model: the denoiser's configuration, the prediction and the encoder's hash.
    """

    folder: Path
    files: tuple[Path, ...]
    hash: str
    model: Mapping[str, Any]
    step: int = 0

    @torch.no_grad()
    def restore(self, network: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
        """Put the weights, or a worker's rows of them, into the network, and into the average, which begins at them."""
        parameters = dict(network.named_parameters())
        pieces = read_pieces(self.files, *place(next(iter(parameters.values()))))
        for name, parameter in parameters.items():
            local(parameter).copy_(pieces[name].tensor)
            local(ema.values[name]).copy_(pieces[name].tensor)

    def check_fit(self, denoiser: DenoiserConfig) -> None:
        """Raise FieldError listing what differs when these are not the weights of such a denoiser."""
        with torch.device("meta"):
            expected = {name: tuple(p.shape) for name, p in UViT(denoiser).named_parameters()}
        found = {name: _shape(piece.rows, piece.tensor) for name, piece in read_pieces(self.files, 0, _MANY).items()}
        odd = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        if not odd:
            return
        shown = [f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}" for name in odd[:_SHOWN]]
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        settings = "; ".join(map(str, differences(self.model["denoiser"], denoiser)[:_SHOWN]))
        raise _refused(
            f"must hold the weights of this denoiser, but tensors of {self.folder} differ ({'; '.join(shown)}{more}); choose "
            f"the denoiser of these weights, or other weights (settings that differ: {settings or 'none'})"
        )

    def notes(self, config: TrainConfig, encoder: Mapping[str, Any]) -> list[str]:
        """What a person should know before these weights are trained on with this configuration and this encoder's identity."""
        notes = []
        if self.model["prediction"] != config.prediction:
            notes.append(f"the weights of {self.folder} predict {self.model['prediction']}, this training {config.prediction}")
        if self.model["encoder_sha256"] != encoder["weights_sha256"]:
            notes.append(f"the weights of {self.folder} were trained with another encoder than these encodings")
        return notes


@dataclass(frozen=True)
class TrainingInputs:
    """What a training is made from, read and compared once by the process that starts it. It pickles.

    initial: the weights it begins with, None for random ones.
    """

    pairs: SelectedPairs
    initial: InitialWeights | None


def open_inputs(config: TrainConfig, encodings: Location, selection: Location) -> TrainingInputs:
    """The inputs of a training. Raises DataError, WeightsError or FieldError when they are not whole or do not fit together."""
    pairs, initial = open_pairs(encodings, selection), initial_weights(config)
    if initial is not None:
        initial.check_fit(config.denoiser)
    return TrainingInputs(pairs, initial)


def initial_weights(config: TrainConfig) -> InitialWeights | None:
    """The weights of `config.init_from`, compared with their hashes; None when it names none.

    Raises FieldError or WeightsError naming what is wrong.
    """
    if not config.init_from:
        return None
    folder = _folder_of(config.init_from)
    checkpoint = _checkpoint_in(folder)
    if checkpoint is not None:
        return _of_checkpoint(checkpoint, config.init_weights)
    if not (folder / CONFIG).exists():
        raise _refused(f"must be a checkpoint, the output of semantica train or a release, got {folder}; name one of these")
    return _of_release(folder, config.init_weights)


def _folder_of(init_from: str) -> Path:
    """The folder of this path, or of the release with this name on a hub, found as semantica.load does: a folder goes first."""
    folder = Path(init_from).expanduser().absolute()
    if folder.exists() or not hub.is_hub_name(init_from):
        return folder
    try:
        return hub.fetch(init_from)
    except WeightsError as error:
        raise _refused(f"must be a folder or the ORG/NAME of a release: {error}") from None


def steps_done(output: Path) -> int:
    """The steps of the newest checkpoint in the output of semantica train, finished or not; 0 when there is none."""
    return max([*_checkpoints(output).steps(), _step_of(output / MODEL)])


def make_resumable(output: Path) -> None:
    """Put the model of a finished training among its checkpoints, if the newest is not there, so that it resumes from it."""
    step = _step_of(output / MODEL)
    folder = _checkpoints(output).folder_of(step)
    if step and not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with appearing(folder, new_attempt()) as partial:
            shutil.copytree(output / MODEL, partial, dirs_exist_ok=True)


def cooldown_note(output: Path, config: TrainConfig) -> str:
    """What a cool-down means for a training whose number of steps has changed; "" when its weights do not depend on it.

    They do when steps that are done had another learning rate than a training of the new length gives them.
    """
    done = steps_done(output)
    places = [_checkpoints(output).folder_of(done), output / MODEL]
    planned = next((int(_described(p)["config"]["num_steps"]) for p in places if (p / CONFIG).exists()), config.num_steps)
    rate, new = config.optimizer.rate, config.num_steps
    first = max(0, min(planned, new) - config.optimizer.cooldown_steps)
    other = [step for step in range(first, done) if rate(step, planned) != rate(step, new)]
    if not other:
        return ""
    return (
        f"steps {other[0] + 1} to {other[-1] + 1} had the learning rates of a training of {planned} steps, cool-down included: "
        f"the weights will not be those of a training that had {new} steps from the start; for these, train into another --out"
    )


def _checkpoint_in(folder: Path) -> Path | None:
    """The checkpoint that a folder is or holds; None for a release and for anything else."""
    try:
        place = checkpoint_folder(folder)
    except DataError:
        return None
    return place if (place / MANIFEST).exists() else None


def _checkpoints(output: Path) -> Keeper:
    return Keeper(output / CHECKPOINTS, KeepConfig())


def _step_of(checkpoint: Path) -> int:
    """The step of a checkpoint; 0 where there is none, or something else."""
    try:
        return int(json.loads((checkpoint / CONFIG).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _of_checkpoint(folder: Path, weights: str) -> InitialWeights:
    files = checked_files(folder)
    kind = "ema" if weights == "ema" else "model"
    described = _described(folder)
    settings, trained_with = described["config"], described["provenance"]["encoder"].get("identity", {})
    model = _model(settings, trained_with)
    paths = tuple(folder / file.name for file in files if file.kind == kind)
    return InitialWeights(folder, paths, file_sha256(folder / MANIFEST), model)


def _of_release(folder: Path, weights: str) -> InitialWeights:
    described, path = _described(folder), folder / _RELEASED
    if described.get("library") != "semantica" or not path.exists():
        raise _refused(f"must be a checkpoint, the output of semantica train or a release, got {folder}; name one of these")
    if weights != "ema":
        raise FieldError(TrainConfig, "init_weights", f"must be 'ema', since {folder} is a release, got {weights!r}; leave it out")
    sha256 = str(described["weights_sha256"])
    if file_sha256(path) != sha256:
        raise WeightsError(f"release: {path} is damaged (its SHA-256 is not that of {CONFIG}); download or save the model again")
    return InitialWeights(folder, (path,), sha256, _model(described, described["encoder"]["identity"]))


def _refused(problem: str) -> FieldError:
    return FieldError(TrainConfig, "init_from", problem)


def _model(settings: Mapping[str, Any], encoder: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "denoiser": settings["denoiser"],
        "prediction": settings["prediction"],
        "encoder_sha256": encoder.get("weights_sha256"),
    }


def _described(folder: Path) -> dict[str, Any]:
    try:
        described: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"checkpoint: {folder / CONFIG} is not readable ({error}); use another") from None
    return described


def _shape(rows: int | None, tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape) if rows is None else (rows, *tensor.shape[1:])

"""An application over a folder of pictures: which files belong to a picture, and what is drawn for some of the pictures.

A picture is named by its path in the folder, without the suffix. Its mask and its conditioning image are the files of the same name
in folders of their own. A picture that cannot be used is refused with the reason, and the others go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from semantica.applications.editor import Editor
from semantica.applications.settings import ApplyConfig, Task
from semantica.data.location import file_sha256
from semantica.episodes.sources.tree import is_picture
from semantica.errors import ConfigError, DataError

SELF, NONE = "self", "none"  # a picture's conditioning image is itself; it has none


@dataclass(frozen=True)
class Item:
    """A picture and the files that belong to it: its mask, and the conditioning image where that is another picture."""

    name: str
    picture: Path
    mask: Path | None = None
    like: Path | None = None


@dataclass(frozen=True)
class Folders:
    """Where the pictures of a job lie.

    like: "self", "none", one picture for all, or a folder with a conditioning image per picture. masks: a folder with a mask per
    picture, for inpaint (white where the picture is drawn) and edit (white where it stays).
    """

    pictures: Path
    like: str = SELF
    masks: Path | None = None

    @property
    def has_likes(self) -> bool:
        """Whether the conditioning images are other pictures."""
        return self.like not in (SELF, NONE)

    def check(self, task: Task) -> None:
        """Raise ConfigError where the task lacks what it needs, or is given what it does not take."""
        if task == "inpaint" and self.masks is None:
            raise ConfigError("masks: inpaint needs a mask per picture; give a folder with files of the same names")
        if self.masks is not None and task not in ("inpaint", "edit"):
            raise ConfigError(f"masks: {task} takes no masks; leave them out")
        if task == "interpolate" and not self.has_likes:
            raise ConfigError("like: interpolate goes from each picture to another; give a picture, or a folder of them")
        if self.like == NONE and task in ("vary", "invert"):
            raise ConfigError(f"like: {task} draws what the encoder says of a picture; give a picture, a folder or self")
        if task == "vary" and self.has_likes:
            raise ConfigError("like: vary draws variations of the pictures themselves; leave it out")

    def items(self) -> list[Item]:
        """Every picture of the folder, in the order of the names. Raises DataError."""
        pictures = _by_name(self.pictures, "pictures")
        if not pictures:
            raise DataError(f"pictures: no pictures under {self.pictures}")
        masks = {} if self.masks is None else _by_name(self.masks, "masks")
        one = Path(self.like) if self.has_likes and not Path(self.like).is_dir() else None
        likes = _by_name(Path(self.like), "like") if self.has_likes and one is None else {}
        return [Item(name, path, masks.get(name), one or likes.get(name)) for name, path in pictures.items()]

    def hashes(self, items: Sequence[Item]) -> dict[str, str]:
        """{what: hash of the names and the bytes of its files}, of the pictures, the masks and the conditioning images."""
        files: dict[str, list[Path | None]] = {
            "pictures": [item.picture for item in items],
            "masks": [item.mask for item in items],
            "like": [item.like for item in items],
        }
        known: dict[Path, str] = {}
        hashes = {}
        for what, paths in files.items():
            digest = hashlib.sha256()
            for item, path in zip(items, paths, strict=True):
                if path is not None:
                    known[path] = known.get(path) or file_sha256(path)
                    digest.update(f"{item.name}\0{known[path]}\n".encode())
            if any(paths):
                hashes[what] = digest.hexdigest()
        return hashes


def _by_name(folder: Path, what: str) -> dict[str, Path]:
    """The picture files under a folder by name."""
    if not folder.is_dir():
        raise DataError(f"{what}: no folder {folder}")
    files: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if is_picture(path.name) and path.is_file()):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise DataError(f"{what}: {files[name].name} and {path.name} in {path.parent} have one name; rename one of them")
        files[name] = path
    return files


@dataclass(frozen=True)
class Drawn:
    """What an application made of a picture: its samples, or the reason why there are none. z: the latent of an inversion."""

    item: Item
    samples: list[Image.Image] = field(default_factory=list)
    z: Tensor | None = None
    reason: str = ""


def apply(model: Editor, task: Task, items: Sequence[Item], folders: Folders, config: ApplyConfig) -> list[Drawn]:
    """What the task makes of each picture.

    Applications look at all their pictures before they draw. So when one of several is refused, nothing is drawn yet, and each of
    them is given alone.
    """
    try:
        for item in items:
            _check_files(item, folders)
        return _TASKS[task](model, items, folders, config)
    except DataError as error:
        if len(items) == 1:
            return [Drawn(items[0], reason=str(error))]
        return [drawn for item in items for drawn in apply(model, task, [item], folders, config)]


def _check_files(item: Item, folders: Folders) -> None:
    if folders.masks is not None and item.mask is None:
        raise DataError(f"mask: no picture {item.name} in {folders.masks}")
    if folders.has_likes and item.like is None:
        raise DataError(f"like: no picture {item.name} in {folders.like}")


def _settings(config: ApplyConfig) -> dict[str, Any]:
    """The settings that all methods take."""
    names = ("similarity", "num_steps", "sampler", "seed", "beyond")
    settings = {name: getattr(config, name) for name in names}
    return settings if config.guidance is None else {**settings, "guidance": config.guidance}


def _given(items: Sequence[Item], folders: Folders) -> tuple[list[Path], list[Path] | None]:
    """(the pictures, their conditioning images)."""
    pictures = [item.picture for item in items]
    if folders.like == NONE:
        return pictures, None
    return pictures, [item.like or item.picture for item in items]


def _masks(items: Sequence[Item]) -> list[Path]:
    return [item.mask for item in items if item.mask is not None]


def _drawn(items: Sequence[Item], samples: Sequence[list[Image.Image]]) -> list[Drawn]:
    return [Drawn(item, row) for item, row in zip(items, samples, strict=True)]


def _edit(model: Editor, items: Sequence[Item], folders: Folders, config: ApplyConfig) -> list[Drawn]:
    pictures, like = _given(items, folders)
    settings = {**_settings(config), "num_samples": config.samples_per_picture}
    keep = _masks(items) if folders.masks is not None else None
    return _drawn(items, model.edit(pictures, like, strength=config.strength, keep=keep, repeats=config.repeats, **settings))


def _refine(model: Editor, items: Sequence[Item], folders: Folders, config: ApplyConfig) -> list[Drawn]:
    pictures, like = _given(items, folders)
    settings = {**_settings(config), "num_samples": config.samples_per_picture}
    return _drawn(items, model.refine(pictures, like, factor=config.factor, until=config.until, **settings))


def _inpaint(model: Editor, items: Sequence[Item], folders: Folders, config: ApplyConfig) -> list[Drawn]:
    pictures, like = _given(items, folders)
    settings = {**_settings(config), "num_samples": config.samples_per_picture}
    return _drawn(items, model.inpaint(pictures, _masks(items), like, resample=config.resample, jump=config.jump, **settings))


def _vary(model: Editor, items: Sequence[Item], folders: Folders, config: ApplyConfig) -> list[Drawn]:
    pictures = [item.picture for item in items]
    return _drawn(items, model(pictures, num_samples=config.samples_per_picture, **_settings(config)))


def _interpolate(model: Editor, items: Sequence[Item], folders: Folders, config: ApplyConfig) -> list[Drawn]:
    settings = _settings(config)
    ends = [(item.picture, item.like) for item in items if item.like is not None]
    return _drawn(items, [model.interpolate(a, b, config.num, config.noise, **settings) for a, b in ends])


def _invert(model: Editor, items: Sequence[Item], folders: Folders, config: ApplyConfig) -> list[Drawn]:
    pictures, like = _given(items, folders)
    settings = {**_settings(config), "sampler": config.sampler or "ddim"}
    latent = model.invert(pictures, like, config.num_iterations, **settings)
    samples = model.render(latent)
    return [Drawn(item, [row], z) for item, row, z in zip(items, samples, latent.z, strict=True)]


_TASKS: Mapping[Task, Callable[[Editor, Sequence[Item], Folders, ApplyConfig], list[Drawn]]] = {
    "edit": _edit,
    "refine": _refine,
    "inpaint": _inpaint,
    "vary": _vary,
    "interpolate": _interpolate,
    "invert": _invert,
}

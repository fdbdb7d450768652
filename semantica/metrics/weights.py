"""The one door through which metric weights come in: a local file whose SHA-256 is known, or a WeightsError that says what to do.

Two of the extractors ship as TorchScript or as a zip of tensors, not as safetensors, so the hash is checked before any byte is
interpreted. Nothing here reaches for the network.
"""

from __future__ import annotations

from pathlib import Path

from semantica.errors import WeightsError
from semantica.storage import file_sha256


def checked_file(path: Path, sha256: str, what: str, remedy: str) -> Path:
    """`path` itself, once its SHA-256 begins with `sha256` (64 hex digits, or the first 8 where the publisher gives no more).

    Raises WeightsError naming `what`, the file, the expected hash and the remedy when the file is missing or another one.
    """
    if not path.is_file():
        raise WeightsError(f"{what}: expected the file {path} (SHA-256 {sha256}), got none; {remedy}")
    found = file_sha256(path)
    if not found.startswith(sha256):
        raise WeightsError(f"{what}: expected SHA-256 {sha256} of {path}, got {found}, so it is not loaded; {remedy}")
    return path

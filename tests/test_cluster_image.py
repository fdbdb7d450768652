"""The image of the clusters on Kubernetes: what it is built from, who it runs as, what it takes."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "clusters"


def test_the_image_is_pinned_and_not_root_and_takes_nothing_but_the_code() -> None:
    lines = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    bases = [rest.split()[0] for word, rest in steps if word == "FROM"]
    assert bases == ["python:3.11-slim-bookworm"] * 2
    last = [rest for word, rest in steps if word == "USER"][-1]
    assert last == "1000:1000"
    assert [word for word, _ in steps if word == "ADD"] == []
    assert all("--constraint" in rest for _, rest in steps if "pip install" in rest)
    ignore = (FOLDER / "Dockerfile.dockerignore").read_text().split("\n")
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    copied = {name for word, rest in steps if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]}
    assert "*" in ignore
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)

"""What `ray job submit --working-dir .` sends from a checkout: the code, and nothing that runs, environments or models weigh."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[1]
STAYS = (
    ".venv/lib/python3.12/site-packages/torch/lib.so",
    ".venv-3.13/bin/python",
    "venv/bin/python",
    "env/bin/python",
    "runs/quickstart/model/model.safetensors",
    "runs/quickstart/report.json",
    "mlruns/0/meta.yaml",
    "mlflow.db",
    "mine.db",
    "mine.db-wal",
    "weights/dinov2.safetensors",
    "shard-00000.parquet",
    "crawl.warc.gz",
    ".mypy_cache/3.12/x.json",
    "semantica/__pycache__/config.cpython-312.pyc",
    ".git/objects/pack",
)
GOES = (
    "semantica/config/door.py",
    "jobs/train.py",
    "my_application/model.py",
    "my.yaml",
    "my-pictures/cat/1.jpg",
    "environment/a.txt",
)


def sent(folder: Path, target: Path, *, gitignore: bool) -> set[str]:
    """The files of the package that Ray makes of a folder."""
    create_package(str(folder), target, include_gitignore=gitignore, excludes=get_runtime_env_default_excludes(), logger=None)
    with zipfile.ZipFile(target) as package:
        return {name for name in package.namelist() if not name.endswith("/")}


@pytest.mark.parametrize("gitignore", [True, False], ids=["with .gitignore", "RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1"])
def test_environments_runs_and_weights_stay_here_and_code_and_settings_go(tmp_path: Path, gitignore: bool) -> None:
    checkout = tmp_path / "checkout"
    for name in (*STAYS, *GOES):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x")
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, checkout)
    assert sent(checkout, tmp_path / "package.zip", gitignore=gitignore) == {*GOES, ".gitignore", ".rayignore"}


def test_without_the_file_runs_and_environments_would_be_sent(tmp_path: Path) -> None:
    names = {"runs/model.bin", ".venv-3.13/bin/python", "mine.db"}
    for name in names:
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text("x")
    assert sent(tmp_path / "checkout", tmp_path / "package.zip", gitignore=True) == names


def test_every_file_of_the_packages_goes() -> None:
    from pathspec import PathSpec

    files = subprocess.run(
        ["git", "ls-files", "semantica", "jobs", "tune", "benchmarks", "pyproject.toml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    ignored = PathSpec.from_lines("gitwildmatch", (ROOT / ".rayignore").read_text().splitlines())
    assert [name for name in files if name and any(ignored.match_file(str(p)) for p in (Path(name), *Path(name).parents))] == []

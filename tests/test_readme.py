"""The README, typed block by block in a fresh clone with a new environment: about 25 minutes, so it belongs to `make test-long`."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import draw_pages

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script_of(page: str) -> str:
    """One shell script of all blocks in their order, so that what the first activates is there for the others."""
    parts = ["set -e"]
    for language, text in BLOCK.findall(page):
        parts.append(text if language == "bash" else f"python - <<'BLOCK'\n{text}BLOCK\n")
    return "\n".join(parts)


def test_the_readme_has_blocks_to_type() -> None:
    script = script_of((ROOT / "README.md").read_text())
    assert script.index("make install") < script.index("source .venv/bin/activate") < script.index("semantica quickstart")
    assert "semantica.load(" in script


@pytest.mark.ray
@pytest.mark.slow
def test_every_block_of_the_readme_works_in_order_in_a_fresh_clone(tmp_path: Path) -> None:
    clone = tmp_path / "semantica"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    draw_pages(clone / "my-pictures", num_pages=24)
    waves = np.indices((96, 128)).sum(0) % 64 * 4
    Image.fromarray(np.stack([waves, 255 - waves, waves // 2], 2).astype(np.uint8)).save(clone / "me.jpg")

    python = f"PYTHON={shlex.quote(shutil.which('python3') if sys.prefix == sys.base_prefix else sys._base_executable)}"
    script = script_of((clone / "README.md").read_text()).replace("make install", f"make {python} install")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(Path.home()), "LANG": "C.UTF-8"}
    done = subprocess.run(["bash", "-c", script], cwd=clone, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"

    runs = clone / "runs"
    assert (runs / "quickstart" / "evaluation" / "report.html").stat().st_size > 50_000
    assert (runs / "mine" / "grids" / "report.html").exists()
    assert (runs / "mine" / "curve" / "report.json").exists()
    assert sorted(path.name for path in clone.glob("like-me-*.png")) == [f"like-me-{index}.png" for index in range(4)]

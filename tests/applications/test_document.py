"""Every block of docs/applications.md runs, in order, on a real model of a few training steps."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

import semantica
from tests.generation.drawing import pixels

PAGE = Path(__file__).parents[2] / "docs" / "applications.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_block_of_the_page_runs(runs, make, tmp_path, monkeypatch):
    blocks = BLOCK.findall(PAGE.read_text())
    assert PAGE.read_text().count("```") == 2 * len(blocks)
    assert {language for language, _ in blocks} == {"python", "bash"}
    model = semantica.load(runs.plain.checkpoint, "cpu", runs.plain.encoder)
    monkeypatch.setattr(semantica, "load", lambda path: model, raising=False)
    monkeypatch.setattr(type(model), "sampler", _few_steps(type(model).sampler))
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["photo.png", "other.jpg", "strokes.png"], start=1):
        (tmp_path / name).write_bytes(make.picture(number, 40))
    names = {}
    for code in (code for language, code in blocks if language == "python"):
        exec(compile(code, str(PAGE), "exec"), names)
    assert (tmp_path / "edit.png").is_file()
    assert [len(names[name]) for name in ("drafts", "collage", "filled", "variations", "near", "morph", "mixed")] == [
        4,
        1,
        2,
        4,
        4,
        9,
        1,
    ]
    hole = np.asarray(Image.open(tmp_path / "hole.png").resize((16, 16), Image.Resampling.BOX)) > 0
    assert (pixels(names["filled"])[:, ~hole] == pixels(names["unedited"])[:, ~hole]).all()


def _few_steps(sampler):
    """Six steps where the page says none: the paper's 256 show nothing more here."""
    return lambda self, name, num_steps: sampler(self, name, num_steps or 6)

"""The benchmark of editing: every part measures on a small model, and its figures have names of their own."""

import pytest
import torch
from PIL import Image

from benchmarks.editing import PARTS, Case, as_pictures, values
from tests.generation.conftest import model, pictures, runs

__all__ = ["model", "pictures", "runs"]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_measures(model, pictures, part):
    case = Case(model, [picture.convert("RGB").resize((16, 16), Image.Resampling.BOX) for picture in pictures], 3)
    rows = PARTS[part](case)
    assert len({row.name for row in rows}) == len(rows) >= 2
    assert all(torch.isfinite(torch.tensor(row.figure)) for row in rows)
    assert any(row.target is not None for row in rows)


def test_pictures_come_back_from_their_values():
    x = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    torch.testing.assert_close(values(as_pictures(x)), x)

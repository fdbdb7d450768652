"""Pictures as a page holds them, and the grids and galleries that put each sample beside its condition."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from selectolax.lexbor import LexborHTMLParser

from semantica.errors import DataError
from semantica.report.page import Report, render
from semantica.report.pictures import Example, Gallery, Grid, encoded, guidance_grid, png_shown, samples_grid, sheet_png

RANDOM = np.random.default_rng(0)


def noise(side, height=None):
    return RANDOM.integers(0, 256, (height or side, side, 3), dtype=np.uint8)


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_small_pictures_are_kept_to_the_pixel_and_large_ones_are_reduced_in_shape():
    small, wide = noise(32), noise(512, 128)
    shown = encoded([small, wide])
    np.testing.assert_array_equal(decoded(shown.pictures[0].uri), small)
    assert shown.pictures[0].exact
    assert decoded(shown.pictures[1].uri).shape == (64, 256, 3)
    assert (shown.pictures[1].width, shown.pictures[1].height) == (256, 64)
    assert not shown.pictures[1].exact


def test_a_smooth_picture_looks_the_same_after_jpeg():
    y, x = np.mgrid[0:256, 0:256]
    smooth = np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8)
    error = decoded(encoded([smooth]).pictures[0].uri).astype(float) - smooth
    assert np.sqrt((error**2).mean()) < 3


def test_a_whole_grid_is_lossless_and_nothing_but_a_png_is_taken():
    png = sheet_png([noise(128) for _ in range(8)])
    whole = png_shown(png)
    np.testing.assert_array_equal(decoded(whole.uri), np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))
    with pytest.raises(DataError, match="expected a grid as PNG"):
        png_shown(b"GIF89a")


def test_a_grid_of_the_paper_shows_condition_left_samples_right_a_column_a_w():
    conditions, samples = [noise(32), noise(32)], [[noise(32), None], [noise(32), noise(32)]]
    grid = guidance_grid(conditions, samples, weights=[0, 0.5], row_labels=["cat", "dog"])
    table = LexborHTMLParser(render(Report(title="", summary=[], grids=[grid]))).css_first("table.samples")
    assert [cell.text() for cell in table.css("thead th")] == ["condition", "w = 0", "w = 0.5"]
    first, second = table.css("tbody tr")
    np.testing.assert_array_equal(decoded(first.css_first("th img").attributes["src"]), conditions[0])
    assert [image.attributes["alt"] for image in second.css("img")] == [
        "conditioning image, dog",
        "sample, w = 0, dog",
        "sample, w = 0.5, dog",
    ]
    np.testing.assert_array_equal(decoded(second.css("td img")[1].attributes["src"]), samples[1][1])
    assert first.css_first("td.none") is not None
    assert Image.open(io.BytesIO(grid.png)).width > 3 * 96  # for MLflow, where there is no page


def test_a_gallery_shows_each_sample_beside_its_own_condition():
    pairs = [(noise(32), noise(32)) for _ in range(5)]
    gallery = Gallery(title="g", examples=[Example(condition=c, samples=[s], label=f"e{i}") for i, (c, s) in enumerate(pairs)])
    cards = LexborHTMLParser(render(Report(title="", summary=[], galleries=[gallery]))).css(".card")
    for card, (condition, sample) in zip(cards, pairs, strict=True):
        shown = [decoded(image.attributes["src"]) for image in card.css("img")]
        np.testing.assert_array_equal(shown, [condition, sample])
    assert [card.css_first("input").attributes["aria-label"] for card in cards] == [f"e{i}" for i in range(5)]


def test_ragged_and_empty_grids_and_galleries_are_refused():
    with pytest.raises(DataError, match=r"got lengths \[1, 2\]"):
        Grid(title="g", png=b"", alt="", rows=[[noise(8)], [noise(8), noise(8)]])
    with pytest.raises(DataError, match="expected 2 column_labels or none, got 1"):
        Grid(title="g", png=b"", alt="", rows=[[noise(8), noise(8)]], column_labels=["condition"])
    with pytest.raises(DataError, match="expected 1 row_labels or none, got 2"):
        Grid(title="g", png=b"", alt="", rows=[[noise(8), noise(8)]], row_labels=["a", "b"])
    with pytest.raises(DataError, match="got 1, 2 and 0"):
        samples_grid([noise(8)], [[noise(8)], [noise(8)]], guidance=0)
    with pytest.raises(DataError, match="at least one sample of 'x'"):
        Example(condition=noise(8), samples=[], label="x")
    with pytest.raises(DataError, match="got 1 samples and 2 labels"):
        Example(condition=noise(8), samples=[noise(8)], sample_labels=["a", "b"])
    with pytest.raises(DataError, match="at least one example, got none"):
        Gallery(title="g", examples=[])

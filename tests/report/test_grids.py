import io

import numpy as np
import pytest
from PIL import Image

from semantica.errors import DataError
from semantica.report.pictures import grid_png, sheet_png

RED, BLUE = (np.full((32, 32, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 0, 200)))


def opened(png):
    return Image.open(io.BytesIO(png))


def test_pictures_stand_in_columns_with_a_gap_after_the_condition():
    image = opened(grid_png([[RED, BLUE, BLUE], [RED, None, BLUE]]))
    assert image.size == (3 * 96 + 2 * 3 + 18, 2 * 96 + 3)
    assert image.getpixel((95, 0)) == (200, 0, 0, 255)
    assert image.getpixel((96 + 3 + 9, 50))[3] == 0  # the gap is transparent
    assert image.getpixel((96 + 3 + 18, 0)) == (0, 0, 200, 255)
    assert image.getpixel((96 + 3 + 18, 99))[3] == 40  # a missing sample is a pale square


def test_enlarging_repeats_pixels_exactly():
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    shown = np.asarray(opened(grid_png([[picture, picture]])).convert("RGB"))[:96, :96]
    np.testing.assert_array_equal(shown[::3, ::3], picture)
    np.testing.assert_array_equal(shown[1::3, 2::3], picture)
    smooth = np.asarray(opened(grid_png([[picture, picture]], smooth=True)).convert("RGB"))[:96, :96]
    assert (smooth != shown).any()


def test_a_conditioning_picture_of_another_size_is_fitted_to_the_cells():
    large = np.full((100, 100, 3), (200, 0, 0), np.uint8)
    assert opened(grid_png([[large, BLUE]])).size == opened(grid_png([[RED, BLUE]])).size


def test_labels_add_a_header_and_a_margin_and_no_label_overflows_its_column():
    plain, labelled = opened(grid_png([[RED, BLUE]])), opened(grid_png([[RED, BLUE]], ["condition", "w = 0"], ["chelsea"]))
    assert labelled.height > plain.height
    assert labelled.width > plain.width
    long = opened(grid_png([[RED, BLUE]], ["a label that is far too long for its column", ""]))
    assert np.asarray(long)[: long.height - 96, 96 : 96 + 21, 3].max() == 0


def test_a_sheet_fills_rows_and_leaves_the_rest_transparent():
    image = opened(sheet_png([RED, BLUE, RED], columns=2))
    assert image.size == (2 * 96 + 3, 2 * 96 + 3)
    assert image.getpixel((150, 150))[3] == 0


def test_rows_and_labels_of_other_lengths_are_refused():
    with pytest.raises(DataError, match=r"got lengths \[1, 2\]"):
        grid_png([[RED, BLUE], [RED]])
    with pytest.raises(DataError, match="expected 2 column_labels or none, got 1"):
        grid_png([[RED, BLUE]], ["condition"])
    with pytest.raises(DataError, match="0 pictures"):
        grid_png([[None, None]])
    with pytest.raises(DataError, match="got 0 pictures"):
        sheet_png([])

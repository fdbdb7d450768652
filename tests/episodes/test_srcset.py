"""The candidates of a srcset attribute."""

import pytest

from semantica.episodes.sources.html import Candidate, parse_srcset


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a.png", [("a.png", 0, 1.0)]),
        ("a.png 1x, b.png 2x", [("a.png", 0, 1.0), ("b.png", 0, 2.0)]),
        ("a.png 300w,b.png 600w", [("a.png", 300, 1.0), ("b.png", 600, 1.0)]),
        (" , a.png , b.png 1.5x ,", [("a.png", 0, 1.0), ("b.png", 0, 1.5)]),
        ("a.png, b.png 2x", [("a.png", 0, 1.0), ("b.png", 0, 2.0)]),
        ("/w_300,h_200/a.png 300w, /w_600,h_400/a.png 600w", [("/w_300,h_200/a.png", 300, 1.0), ("/w_600,h_400/a.png", 600, 1.0)]),
        ("data:image/png;base64,AA== 1x, b.png 2x", [("data:image/png;base64,AA==", 0, 1.0), ("b.png", 0, 2.0)]),
        ("a.png 100w 50h, b.png (odd, thing) 2x, c.png 3q, d.png 0w, e.png -1x", [("a.png", 100, 1.0)]),
        ("a.png\n\t2x", [("a.png", 0, 2.0)]),
        ("a.png 1x 2x, b.png 1e1x", [("b.png", 0, 10.0)]),
    ],
)
def test_srcset_is_parsed_as_the_standard_says(text, expected):
    assert parse_srcset(text) == [Candidate(*values) for values in expected]

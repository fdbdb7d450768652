"""Progress: what is tracked comes through untouched; a log gets a plain line only when it has been silent for long."""

import pytest

from semantica import progress
from semantica.progress import Meter, track


def test_tracked_items_come_through_in_order_and_short_work_says_nothing(capsys):
    assert list(track(iter("abc"), "letters", 3, "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_outside_a_terminal_a_line_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1.0)
    with Meter("encode", 10, "pictures") as meter:
        meter.advance(4)
        meter.advance(note="loss 0.5")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "  encode: 4/10 pictures in 0 s"
    assert second == "  encode: 5/10 pictures in 0 s loss 0.5"


def test_a_block_that_raises_raises_through_the_meter():
    with pytest.raises(KeyError, match="mine"), Meter("x", 1):
        raise KeyError("mine")

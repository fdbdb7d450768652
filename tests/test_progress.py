"""Progress: a log gets a plain line only when it has been silent for long."""

import pytest

from semantica.distributed import progress
from semantica.distributed.progress import Meter


def test_short_work_says_nothing_outside_a_terminal(capsys):
    with Meter("letters", 3, "letters") as meter:
        meter.advance(3)
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

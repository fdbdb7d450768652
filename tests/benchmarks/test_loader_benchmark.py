"""What the loader's benchmark rests on: one set of pictures in four formats, of which every reader gives every picture once."""

import gc
import time
from collections import Counter
from dataclasses import dataclass

import pytest
import torch

from benchmarks.corpus import photograph
from benchmarks.jpegs import PICTURES_A_PAGE, Corpus
from benchmarks.loader import _WRITERS, Epoch, _ready, epoch
from benchmarks.readers import READERS
from semantica.data.pictures import decode
from semantica.pairs.loader import to_unit

SIDE, NUM_PICTURES = 32, 384


@dataclass(frozen=True)
class Drawn(Corpus):
    """The corpus with pictures that need no package."""

    def picture(self, number):
        return photograph(number, self.side)


@pytest.fixture(scope="module", params=[None, (3, 8)], ids=["pictures", "pictures and tokens"])
def written(request, tmp_path_factory):
    """(folder, corpus, {bytes of a picture's x: its number})."""
    folder, corpus = tmp_path_factory.mktemp("formats"), Drawn(NUM_PICTURES, SIDE, request.param)
    pixels = {to_unit(decode(corpus.picture(n), SIDE)).numpy().tobytes(): n for n in range(NUM_PICTURES)}
    assert len(pixels) == NUM_PICTURES
    return folder, corpus, pixels


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch):
    """No garbage in this process, of which a worker is a fork.

    A DataLoader of the test before, collected in a worker, asserts that it is in its own process and is reported with a traceback.
    That parses; in the middle of np.load's parsing of a header, CPython before 3.11.8 raises a SystemError.
    """
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # seconds that it waits for each of its workers
    _ready.clear()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", list(READERS))
@pytest.mark.parametrize("workers", [0, 2])
def test_every_reader_gives_every_picture_once_with_tokens_of_its_page(written, name, workers):
    if name == "mosaicml-streaming":
        pytest.importorskip("streaming", reason="python -m pip install --no-deps -r benchmarks/loader-peers.txt")
    folder, corpus, pixels = written
    sub, make = READERS[name]
    if not (folder / sub).exists():
        _WRITERS[sub](folder / sub, corpus)
    seen = Counter()
    for x, tokens in make(folder / sub, corpus).epoch(workers):
        numbers = [pixels[row.contiguous().numpy().tobytes()] for row in x]
        seen.update(numbers)
        assert (tokens is None) == (corpus.tokens is None)
        for row, number in enumerate(numbers if tokens is not None else []):
            page = number - number % PICTURES_A_PAGE
            members = [n for n in range(page, page + PICTURES_A_PAGE) if (n == number) == (name != "semantica")]
            assert any(torch.equal(tokens[row], torch.from_numpy(corpus.tokens_of(n)).float()) for n in members)
    assert len(seen) == NUM_PICTURES
    assert set(seen.values()) == {1}


def test_an_epoch_counts_its_pictures_and_the_processor_of_its_workers(written):
    folder, corpus, _ = written
    if not (folder / "files").exists():
        _WRITERS["files"](folder / "files", corpus)
    alone = epoch("torch DataLoader", folder, corpus, 0)
    _ready.clear()  # a reader keeps the workers that it began with
    before = time.process_time()
    shared = epoch("torch DataLoader", folder, corpus, 2)
    own_s = time.process_time() - before
    assert alone.pictures == shared.pictures == NUM_PICTURES
    assert alone.pixels == shared.pixels
    assert shared.processor_s > own_s  # the workers are counted
    assert Epoch(2.0, 4.0, 100, 0).a_core == 25
    assert Epoch(2.0, 4.0, 100, 0).by_the_clock == 50

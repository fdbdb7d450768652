"""The readers that benchmarks.loader compares: the project's loader, and webdataset, mosaicml-streaming and a torch Dataset.

In: the folder of a format (benchmarks/jpegs.py) and a number of workers. Out: an epoch of batches (x, tokens or None), float32, x
in [-1, 1]. All decode by the same function, `decode` (Pillow), and scale by the same `to_unit`; a peer is otherwise as its own
documentation has it, with a DataLoader around it. Each shuffles its own way: a torch sampler all pictures, webdataset its shards
and a buffer of 1,000 pictures that are not decoded yet, mosaicml-streaming by its default (py1e), ours by windows of two row
groups in each of four lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.jpegs import Corpus
from semantica.data.pictures import TokensOf, decode
from semantica.pairs.loader import Batches, LoaderWorker, PairLoader, open_pairs, to_unit
from semantica.training.feed import made_ahead

Read = tuple[Tensor, Tensor | None]
BATCH, NUM_LANES, WINDOW_GROUPS, SHUFFLE_BUFFER = 64, 4, 2, 1000
OPEN_BYTES = 2**29  # the windows fit, the corpus does not, as a crawl would not
PREFETCH = 2  # batches; that of a worker of a DataLoader too


def collated(samples: Sequence[tuple[Tensor, Tensor | None]]) -> Read:
    """A batch of decoded pictures, uint8, and their tokens, float16: so a worker hands over less than what is asked for."""
    tokens = [tokens for _, tokens in samples if tokens is not None]
    return torch.stack([pixels for pixels, _ in samples]), torch.stack(tokens) if tokens else None


def no_tokens(pictures: Sequence[bytes]) -> Tensor:
    """What an encoder of no tokens makes of pictures: for a loader of pictures alone."""
    return torch.zeros(len(pictures), 0, 1)


def own_loader(folder: Path, corpus: Corpus, num_threads: int, tokens_of: TokensOf | None) -> PairLoader:
    """The project's loader. tokens_of: for encodings without tokens."""
    return PairLoader(
        open_pairs(folder / "encodings", folder / "selection"),
        Batches(seed=0, batch_size=BATCH, num_lanes=NUM_LANES, resolution_px=corpus.side, window_groups=WINDOW_GROUPS),
        LoaderWorker(max_open_bytes=OPEN_BYTES, num_threads=max(1, num_threads)),
        tokens_of=tokens_of,
    )


class Own:
    """`semantica`: a new loader every epoch, so that nothing is decoded yet. Workers are threads."""

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        self.folder, self.corpus = folder, corpus

    def epoch(self, workers: int) -> Iterator[Read]:
        """Every picture once as a target, with the tokens of a random other picture of its page."""
        loader = own_loader(self.folder, self.corpus, workers, None if self.corpus.tokens else no_tokens)
        with made_ahead(loader.batch, range(self.corpus.num_pictures // BATCH), PREFETCH if workers else 0) as made:
            for batch in made:
                yield batch.x, batch.cond.tokens[:, 0] if self.corpus.tokens else None
                batch.recycle()


class Files(Dataset[tuple[Tensor, Tensor | None]]):
    """`torch DataLoader`: a Dataset over single files."""

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        self.paths, self.corpus = sorted(map(str, folder.glob("*.jpg"))), corpus
        self.loader: DataLoader[Any] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None]:
        with open(self.paths[index], "rb") as file:
            pixels = decode(file.read(), self.corpus.side)
        if self.corpus.tokens is None:
            return pixels, None
        return pixels, torch.from_numpy(np.load(self.paths[index].removesuffix("jpg") + "npy"))

    def epoch(self, workers: int) -> Iterator[Read]:
        """Every picture once, with its own tokens."""
        if self.loader is None:
            self.loader = _loader(self, workers, batch_size=BATCH, shuffle=True, collate_fn=collated)
        yield from _batches(self.loader)


class Tars:
    """`webdataset`."""

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        self.shards, self.side = sorted(map(str, folder.glob("*.tar"))), corpus.side
        self.loader: DataLoader[Any] | None = None

    def epoch(self, workers: int) -> Iterator[Read]:
        """Every picture once, with its own tokens."""
        import webdataset

        dataset = webdataset.WebDataset(self.shards, shardshuffle=len(self.shards), seed=0).shuffle(SHUFFLE_BUFFER)
        dataset = dataset.map(self._decoded).batched(BATCH, collation_fn=collated)
        if self.loader is None:
            self.loader = _loader(dataset, workers, batch_size=None)
        yield from _batches(self.loader)

    def _decoded(self, sample: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        import webdataset

        tokens = torch.from_numpy(webdataset.autodecode.npy_loads(sample["npy"])) if "npy" in sample else None
        return decode(sample["jpg"], self.side), tokens


class Mds:
    """`mosaicml-streaming`."""

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        from streaming import StreamingDataset

        class Decoded(StreamingDataset):
            def __getitem__(self, at: Any) -> Any:
                sample = super().__getitem__(at)
                tokens = torch.from_numpy(sample["tokens"].copy()) if corpus.tokens else None  # it shares read-only memory
                return decode(sample["jpg"], corpus.side), tokens

        self.dataset = Decoded(local=str(folder), shuffle=True, batch_size=BATCH)
        self.loader: DataLoader[Any] | None = None

    def epoch(self, workers: int) -> Iterator[Read]:
        """Every picture once, with its own tokens."""
        if self.loader is None:
            self.loader = _loader(self.dataset, workers, batch_size=BATCH, collate_fn=collated)
        yield from _batches(self.loader)


def _loader(dataset: Any, workers: int, **settings: Any) -> DataLoader[Any]:
    """A DataLoader; its workers, forked as is usual, live for all epochs."""
    if workers:
        settings |= {"num_workers": workers, "prefetch_factor": PREFETCH, "persistent_workers": True}
        settings["multiprocessing_context"] = "fork"
    return DataLoader(dataset, **settings)


def _batches(loader: DataLoader[Any]) -> Iterator[Read]:
    for pixels, tokens in loader:
        yield to_unit(pixels), None if tokens is None else tokens.float()


READERS: dict[str, tuple[str, Callable[[Path, Corpus], Any]]] = {
    "semantica": ("own", Own),
    "webdataset": ("tars", Tars),
    "mosaicml-streaming": ("mds", Mds),
    "torch DataLoader": ("files", Files),
}

"""A loader on a small run and what its batches hold: which pictures, and tokens computed from them."""

from dataclasses import fields

import numpy as np
import torch

from semantica.data.dataset import read_manifest, read_shard
from semantica.data.pictures import decode
from semantica.pairs.loader import Batches, LoaderWorker, PairLoader, open_pairs

STEPS = 12


def loader(run, encodings="encodings", selection="selection", tokens_of=None, **changes):
    settings = {"seed": 0, "batch_size": 8, "num_lanes": 4, "resolution_px": 16, "window_groups": 1} | changes
    worker = {field.name: settings.pop(field.name) for field in fields(LoaderWorker) if field.name in settings}
    return PairLoader(
        open_pairs(run / encodings, run / selection), Batches(**settings), LoaderWorker(**worker), tokens_of=tokens_of
    )


def numbers(batch):
    """[(target's number, conditioning image's number)] of a batch."""
    pixels = ((batch.x[:, :2, 0, 0] + 1) * 127.5).round().int()
    targets = (pixels[:, 0] + 256 * pixels[:, 1]).tolist()
    return list(zip(targets, batch.cond.tokens[:, 0, 0, 0].int().tolist(), strict=True))


def stored(run):
    """number -> (page, pooled embedding) of every picture."""
    found, number = {}, 0
    manifest = read_manifest(run / "encodings", "encodings")
    for entry in manifest.shards():
        for row in read_shard(run / "encodings", entry, ["episode_id", "pooled"]).to_pylist():
            for pooled in row["pooled"]:
                found[number] = row["episode_id"], np.array(pooled, np.float32)
                number += 1
    return found


def same(a, b):
    return all(torch.equal(p, q) for p, q in ((a.x, b.x), (a.cond.tokens, b.cond.tokens), (a.cond.pooled, b.cond.pooled)))


class Numbered:
    """Tokens from stored pictures, as `make.encodings` stores them; .calls are the numbers that were asked for."""

    def __init__(self):
        self.calls = []

    def __call__(self, pictures):
        pixels = [decode(data, 16)[:, 0, 0].int() for data in pictures]
        self.calls.append([int(p[0] + 256 * p[1]) for p in pixels])
        return torch.tensor(self.calls[-1], dtype=torch.float32).view(-1, 1, 1).expand(-1, 3, 8).clone()

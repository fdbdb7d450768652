"""Random numbers keyed by what they are for: a key in, a seed or a generator out that depends on the key alone.

The noise of a training slot, a sample or a dropout mask is drawn from a generator keyed by its name (seed, step, slot, …). So no
number depends on batching, on the number of workers or on what was drawn before.
"""

from __future__ import annotations

import hashlib

import torch


def slot_seed(*key: object) -> int:
    """A 63-bit seed that depends on the key alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "little") >> 1


def keyed_generator(*key: object) -> torch.Generator:
    """A generator on the CPU, seeded by `slot_seed(*key)`."""
    return torch.Generator().manual_seed(slot_seed(*key))


def sample_generator(seed: int, name: str) -> torch.Generator:
    """The generator of all noise of the sample `name` in a drawing with that seed."""
    return keyed_generator("sample", seed, name)

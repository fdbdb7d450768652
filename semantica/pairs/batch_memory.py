"""Memory for the large tensors of batches, used again when nobody holds the batch any more.

To touch new memory costs more than to fill it: the system clears every page first. A batch that is still held, whole or as a view,
is never written to.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_NUM_KEPT = 16  # of all shapes: more than are alive at once, with x, tokens and what is made ahead
_FREE = 3  # references: the list, the loop and the question itself


class BatchMemory:
    """`memory.new(shape)`: a float32 tensor whose values are what happened to stand there."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def new(self, *shape: int) -> Float[Tensor, ...]:
        """A tensor of a shape, in memory that nobody else sees."""
        size = math.prod(shape)
        for array in self._arrays:
            # A tensor made from an array holds it, and so do all views of the tensor, in numpy and in autograd.
            if array.size == size and sys.getrefcount(array) == _FREE:
                return torch.from_numpy(array).view(shape)
        self._arrays = [*self._arrays[1 - _NUM_KEPT :], np.empty(size, np.float32)]
        return torch.from_numpy(self._arrays[-1]).view(shape)

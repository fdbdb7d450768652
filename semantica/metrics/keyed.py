"""Statistics of features that know which pictures they are of, so that work that is done twice counts once.

A worker turns the features of a shard into `KeyedStatistics` under the shard's name. They merge in any order and any number of
times: the same part twice is one part, another part under the same name is an error, and so is a picture in two parts. `total`
adds the parts in the order of their keys, so the same parts give the same bits whoever computed and merged them. Every part is
kept until then (d² float64: 32 MiB at 2048 dimensions), so a part should hold more than d pictures.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from semantica.errors import DataError
from semantica.measure.frechet import FeatureStatistics


@dataclass(frozen=True, eq=False)
class Part:
    """The statistics of the pictures `samples` (sorted), and the SHA-256 of both."""

    samples: tuple[str, ...]
    statistics: FeatureStatistics
    sha256: str


@dataclass(frozen=True, eq=False)
class KeyedStatistics:
    """Parts by key; `a + b` has the parts of both."""

    parts: Mapping[str, Part]

    @classmethod
    def of(cls, key: str, samples: Sequence[str], features: Float[np.ndarray, "n d"]) -> KeyedStatistics:
        """One part: the features of `samples`, in any order. Raises DataError when a sample stands there twice."""
        if len(samples) != len(features):
            raise DataError(
                f"statistics of {key!r}: expected one sample id for each of {len(features)} features, got {len(samples)}"
            )
        order = sorted(range(len(samples)), key=samples.__getitem__)
        names = tuple(samples[i] for i in order)
        for name, following in itertools.pairwise(names):
            if name == following:
                raise DataError(f"statistics of {key!r}: expected every sample once, got {name!r} twice")
        statistics = FeatureStatistics.of(features[order])
        digest = hashlib.sha256(json.dumps(names).encode())
        digest.update(statistics.sum.tobytes())
        digest.update(statistics.outer.tobytes())
        return cls(parts={key: Part(names, statistics, digest.hexdigest())})

    @classmethod
    def merged(cls, several: Iterable[KeyedStatistics]) -> KeyedStatistics:
        """The parts of all, each key once.

        Raises DataError when a key comes with two contents, or a sample in two parts.
        """
        parts: dict[str, Part] = {}
        owner: dict[str, str] = {}
        for keyed in several:
            for key, part in keyed.parts.items():
                known = parts.setdefault(key, part)
                if known.sha256 != part.sha256:
                    raise DataError(
                        f"statistics of {key!r}: expected the same part each time, got SHA-256 {known.sha256[:12]} and "
                        f"{part.sha256[:12]}; two runs that differ were mixed, so measure {key!r} again"
                    )
                if known is part:
                    _claim(owner, key, part)
        return cls(parts=parts)

    def __add__(self, other: KeyedStatistics) -> KeyedStatistics:
        return KeyedStatistics.merged((self, other))

    @property
    def num_samples(self) -> int:
        """How many pictures the parts hold together."""
        return sum(len(part.samples) for part in self.parts.values())

    def total(self) -> FeatureStatistics:
        """The statistics of all pictures, added in the order of the keys. Raises DataError when there is no part."""
        if not self.parts:
            raise DataError("feature statistics: expected at least one part, got none")
        ordered = [self.parts[key].statistics for key in sorted(self.parts)]
        return sum(ordered[1:], ordered[0])


def _claim(owner: dict[str, str], key: str, part: Part) -> None:
    for sample in part.samples:
        if owner.setdefault(sample, key) != key:
            raise DataError(
                f"statistics of {key!r}: sample {sample!r} is also in {owner[sample]!r}, and would count twice; "
                "cut the samples into parts that do not overlap"
            )

"""python -m benchmarks.frechet: the Fréchet distance of 50,000 x 2048 features against torch-fidelity and clean-fid's formula.

Random float32 features whose variances fall by a power law over three decades, as those of Inception do; the reference set is of
another draw, mean and spectrum. *Statistics*: features to what a distance needs (torch-fidelity and clean-fid: numpy's mean and
cov). *Distance*: from statistics to the figure (torch-fidelity: eigenvalues of the product of the covariances; clean-fid: scipy's
matrix square root of it). *Evaluation*: both, of a new set against a reference whose statistics, and here the root of whose
covariance, are there already. Seconds are those of the processor, on one thread, since a core may be shared; rounds are
interleaved, and a ratio is the median of those of single rounds. Memory is what a call adds at most to what is resident.

An evaluation gains less than a distance: most of it is one product of matrices, which numpy's cov computes by halves as well.
The figures differ by about 1e-6 because torch-fidelity takes the mean of float32 features in float32.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import scipy.linalg
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from benchmarks.measure import in_a_process, median_of, peak_growth_mib
from benchmarks.record import Measured, record
from semantica.config import config, from_args, require
from semantica.measure.frechet import FeatureStatistics, Reference, frechet_distance

Result = TypeVar("Result")
NUM_PICTURES, DIM = 50_000, 2048
MAX_DIFFERENCE = 1e-4  # of the figures, relative


@config
class Settings:
    """rounds: of all runs, 40 seconds each on one free core."""

    rounds: int = 3

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "rounds", "at least 1", self.rounds)


@dataclass
class Found:
    """Seconds of every run by round, MiB of its first, and what the distances came to."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    mib: dict[str, float] = field(default_factory=dict)
    distance: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, call: Callable[[], Result]) -> Result:
        """What the call returns; its time, and memory the first time, are noted."""
        result: list[Result] = []

        def timed() -> None:
            started = time.process_time()
            result.append(call())
            self.seconds.setdefault(name, []).append(time.process_time() - started)

        grown = peak_growth_mib(timed)
        self.mib.setdefault(name, grown)
        return result[0]


def features(seed: int, power: float, mean: float) -> np.ndarray:
    """(n, d) float32 with variances (1 + i)^-2power along directions that are not the axes."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((NUM_PICTURES, DIM), np.float32)
    x *= (1 + np.arange(DIM, dtype=np.float32)) ** np.float32(-power)
    for mirror in np.random.default_rng(99).standard_normal((3, DIM), np.float32):  # as good as a rotation, and quick
        mirror /= np.linalg.norm(mirror)
        x -= 2 * np.outer(x @ mirror, mirror)
    return x + np.float32(mean)


def clean_fids_distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """clean-fid's formula, which is pytorch-fid's."""
    difference = one["mu"] - other["mu"]
    root = scipy.linalg.sqrtm(one["sigma"] @ other["sigma"])
    traces = np.trace(one["sigma"]) + np.trace(other["sigma"])
    return float(difference @ difference + traces - 2 * np.trace(np.real(root)))


def measure(rounds: int) -> Found:
    """All runs, in a process with one thread."""
    found = Found()
    real = FeatureStatistics.of(features(0, 0.5, 0.4))
    reference = Reference.of(real)
    theirs = {"mu": real.mean, "sigma": real.cov}
    generated = features(1, 0.53, 0.402)
    for _ in range(rounds):
        ours = found.run("statistics", lambda: FeatureStatistics.of(generated))
        peers = found.run("statistics, numpy's cov", lambda: fid_features_to_statistics(torch.from_numpy(generated)))
        peers["mu"] = peers["mu"].astype(np.float64)  # numpy's mean of float32 is float32; both are asserted to be of one type
        runs: dict[str, Callable[[], float]] = {
            "distance, root cached": lambda mine=ours: frechet_distance(mine, reference),
            "distance": lambda mine=ours: frechet_distance(mine, real),
            "distance, torch-fidelity": lambda other=peers: fid_statistics_to_metric(other, theirs, False)[KEY_METRIC_FID],
            "distance, clean-fid's formula": lambda other=peers: clean_fids_distance(other, theirs),
        }
        for name, run in runs.items():
            found.distance[name] = found.run(name, run)
    return found


def main() -> None:
    """Measure and record."""
    settings = from_args(Settings, sys.argv[1:], prog="python -m benchmarks.frechet", description=(__doc__ or "").splitlines()[0])
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = (
        "1"  # read by the new process
    )
    found = in_a_process(measure, settings.rounds)
    seconds = found.seconds
    measured = [Measured(name=name, figure=statistics.median(taken), unit="s") for name, taken in seconds.items()]
    measured += [Measured(name=f"{name}: memory", figure=mib, unit="MiB") for name, mib in found.mib.items()]
    whole = _sums(seconds["statistics"], seconds["distance, root cached"])
    for peer in ("torch-fidelity", "clean-fid's formula"):
        theirs = seconds[f"distance, {peer}"]
        for name, target, ratio in (
            ("distance, root cached", 3.0, median_of(theirs, seconds["distance, root cached"])),
            ("distance", 1.0, median_of(theirs, seconds["distance"])),
            ("evaluation", 1.0, median_of(_sums(seconds["statistics, numpy's cov"], theirs), whole)),
        ):
            measured.append(
                Measured(
                    name=f"{name}: times faster", figure=ratio, unit="x", target=f">= {target:g}", holds=ratio >= target, peer=peer
                )
            )
        figure = found.distance[f"distance, {peer}"]
        difference = max(abs(found.distance[name] / figure - 1) for name in ("distance", "distance, root cached"))
        measured.append(
            Measured(
                name="relative difference of the figure",
                figure=difference,
                unit="1",
                target=f"<= {MAX_DIFFERENCE:g}",
                holds=difference <= MAX_DIFFERENCE,
                peer=peer,
            )
        )
    print(record("frechet", measured))


def _sums(*of: list[float]) -> list[float]:
    return [sum(values) for values in zip(*of, strict=True)]


if __name__ == "__main__":
    main()

"""python -m benchmarks.sweep [--run runs/quickstart]: do early figures rank the final ones, and what does stopping early save?

On the encodings and scores of `make demo`: a full grid of 12 trials of a small denoiser (patching × learning rate × band), and the
same grid under ASHA, and by successive halving, all by `semantica.distributed.sweep`. Stopped, it goes on with the same command.
Recorded: Spearman's correlation of the figures at each point with the final ones, and the share of the full grid's training FLOPs
that each spent, with the trial it found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.record import Measured, record
from semantica.config import override
from semantica.data.durable import write_atomically
from semantica.diffusion.settings import SamplerConfig
from semantica.distributed.runtime import ClusterConfig, Runtime
from semantica.distributed.session import shared_ray
from semantica.distributed.sweep import sweep
from semantica.errors import SemanticaError
from semantica.presets import preset
from semantica.sweeps.halving import simulated_asha
from semantica.sweeps.plan import SweepPlan
from semantica.sweeps.ranking import rank_correlations, share_of_grid, winner
from semantica.sweeps.results import Result, read_results
from semantica.sweeps.settings import MeasureConfig, SweepConfig
from semantica.sweeps.space import SpaceConfig
from semantica.tracking import TrackingConfig

TARGET = 0.35
RATES = (1e-4, 5e-4, 2e-3)  # a decade and a bit, of which the highest still trains
NUM_ORDERS = 200  # in which the grid might have been tried

# A denoiser that 2 cores train 12 times in minutes. The rate is constant after the warm-up, as in the paper: a figure on the way is
# what a shorter training would have given.
SMALL = {
    "denoiser.patch_px": 2,
    "denoiser.stages": [
        {"channels": 32, "num_blocks": 1, "kind": "conv"},
        {"channels": 64, "num_blocks": 1, "kind": "transformer"},
        {"channels": 96, "num_blocks": 1, "kind": "transformer"},
    ],
    "denoiser.noise_embedding_dim": 128,
    "batch_size": 16,
    "optimizer.warmup_steps": 10,
    "optimizer.cooldown_steps": 0,
    "ema.decay": 0.98,
    "log_every": 20,
}


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, default=Path("runs/quickstart"), help="a finished run: its encodings and scores are read"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sweep-benchmark"), help="where both sweeps are left, and found again"
    )
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--points", type=int, default=9, help="how often a training is measured, the end included")
    parser.add_argument("--num", type=int, default=96, help="conditioning images")
    parser.add_argument("--reduction-factor", type=float, default=3.0)
    parser.add_argument("--max-concurrent", type=int, help="trials at once; ASHA tries one after the other")
    parser.add_argument("--no-record", action="store_true", help="print the table and leave benchmarks/results/ as it is")
    return parser.parse_args(argv)


def plan_of(given: argparse.Namespace, stopping: str) -> SweepPlan:
    """The 12 trials, all to the end ("none"), under ASHA ("asha"), or by successive halving ("halving")."""
    tiny = preset("tiny")
    settings = SweepConfig(
        space=SpaceConfig(learning_rate=RATES, band=((tiny.band.low, tiny.band.high), (-1.0, 1.0))),
        reduction_factor=given.reduction_factor,
        measure=MeasureConfig(
            num_points=given.points, num=given.num, sampler=SamplerConfig(name="dpm_solver", num_steps=10), num_shown=6
        ),
    )
    train = override(tiny.train, {**SMALL, "num_steps": given.steps, "checkpoint_every": max(1, given.steps // given.points)})
    return SweepPlan(
        encodings={"run": str(given.run.absolute() / "encodings")},
        scores={"run": str(given.run.absolute() / "scores")},
        sweep=override(settings, {"stopping": stopping}),
        band=tiny.band,
        train=train,
    )


def measured_rows(
    grid: Sequence[Result], asha: Sequence[Result], halving: Sequence[Result], given: argparse.Namespace
) -> list[Measured]:
    """The figures of three finished sweeps over the same trials."""
    curves = {result.name: [figure.frechet for figure in result.figures] for result in grid}
    steps, flops = grid[0].steps, {result.name: result.flops for result in grid}
    best = winner(grid)
    assert best is not None
    rows = [
        Measured(
            name=f"rank correlation of the figures after {steps[i] / steps[-1]:.0%} of training with the final ones",
            figure=rho,
            unit=f"Spearman, {len(grid)} trials",
        )
        for i, rho in enumerate(rank_correlations(list(curves.values())))
    ]
    orders = [_in_another_order(curves, steps, flops, given, seed) for seed in range(NUM_ORDERS)]
    shares = [s for s, _ in orders]
    finals = sorted(result.final for result in grid if result.final is not None)
    for name, results in (("successive halving", halving), ("ASHA", asha)):
        found, share = winner(results), share_of_grid(results)
        assert found is not None
        same = found.name == best.name
        rows += [
            Measured(
                name=f"training FLOPs that {name} spent to find the grid's best trial" + ("" if same else " (it found another)"),
                figure=share,
                unit="of the full grid's",
                target=f"at most {TARGET}, the best found",
                holds=share <= TARGET and same,
                peer="the full grid",
            ),
            Measured(
                name=f"rank in the grid of the trial that {name} found",
                figure=finals.index(_final_in(grid, found)) + 1,
                unit="1: best",
            ),
            Measured(
                name=f"figures of {name} that differ from the grid's, of trial and point",
                figure=float(_differing(grid, results)),
                unit=f"of {sum(len(r.figures) for r in results)}",
                target="0",
                holds=_differing(grid, results) == 0,
            ),
        ]
    rows += [
        Measured(
            name=f"ASHA's share, simulated over the recorded grid in {NUM_ORDERS} random orders, median",
            figure=float(np.median(shares)),
            unit="of the full grid's",
            target=f"at most {TARGET}",
            holds=float(np.median(shares)) <= TARGET,
        ),
        Measured(
            name="orders in which ASHA finds the grid's best trial",
            figure=float(np.mean([name == best.name for _, name in orders])),
            unit="share",
        ),
        Measured(name="Fréchet distance of the grid's best trial", figure=finals[0], unit=_protocol(grid[0])),
        Measured(name="Fréchet distance of the grid's worst trial", figure=finals[-1], unit=_protocol(grid[0])),
    ]
    return rows


def _final_in(grid: Sequence[Result], found: Result) -> float:
    (value,) = [result.final for result in grid if result.name == found.name]
    assert value is not None
    return value


def _differing(grid: Sequence[Result], results: Sequence[Result]) -> int:
    """How many figures are not the grid's to the last bit: a trial that paused, or ran beside others, is the same training."""
    whole = {(result.name, figure.point): figure.frechet for result in grid for figure in result.figures}
    return sum(figure.frechet != whole[result.name, figure.point] for result in results for figure in result.figures)


def _protocol(result: Result) -> str:
    last = result.figures[-1]
    return f"{last.extractor}, n = {last.num_samples} against {last.num_reference}, step {last.step}, w = 0, EMA, one seed"


def _in_another_order(
    curves: dict[str, list[float]], steps: Sequence[int], flops: dict[str, float], given: argparse.Namespace, seed: int
) -> tuple[float, str]:
    names = [str(name) for name in np.random.default_rng(seed).permutation(list(curves))]
    ordered = {name: curves[name] for name in names}
    found = simulated_asha(ordered, steps, flops, grace_points=1, reduction_factor=given.reduction_factor)
    return found.share, found.best


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing of the three sweeps, then write the table. Returns the exit code."""
    given = options(argv)
    out = given.out.absolute()
    runtime = Runtime(
        cluster=ClusterConfig(num_workers=1, max_failures=2), tracking=TrackingConfig(uri=f"sqlite:///{out}/mlflow.db")
    )
    try:
        with shared_ray():
            sweep(plan_of(given, "none"), out=out / "grid", runtime=runtime, max_concurrent=given.max_concurrent)
            sweep(plan_of(given, "asha"), out=out / "asha", runtime=runtime, max_concurrent=1)
            sweep(plan_of(given, "halving"), out=out / "halving", runtime=runtime, max_concurrent=given.max_concurrent)
        grid, asha, halving = (read_results(out / name) for name in ("grid", "asha", "halving"))
        rows = measured_rows(grid, asha, halving, given)
    except SemanticaError as error:
        print(f"error: {error}")
        return 1
    curves = {result.name: [(figure.step, figure.frechet) for figure in result.figures] for result in grid}
    write_atomically(out / "curves.json", json.dumps(curves, indent=1).encode())
    if not given.no_record:
        print(record("sweep", rows))
    else:
        for row in rows:
            print(f"{row.name}: {row.figure:.4g} {row.unit}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The search: which trial comes next. The grid in order, draws of a seeded generator, or Optuna's TPE. No state is kept.

The trial of an index is a function of the settings and, for optuna, of the earlier trials on disk. So a sweep that was killed
continues with the trials that it would have tried.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from semantica.sweeps.results import Result
from semantica.sweeps.settings import SweepConfig
from semantica.sweeps.space import Choice, Dimension, Drawn, Setting, dimensions, grid


def num_trials(config: SweepConfig, encoders: Sequence[str]) -> int:
    """How many trials the sweep has. Raises ConfigError for a grid of ranges."""
    return len(grid(config.space, encoders)) if config.search == "grid" else config.num_trials


def choose(config: SweepConfig, encoders: Sequence[str], index: int, before: Sequence[Result] = ()) -> Drawn:
    """The values that the search chooses for the trial of this index, from 0. before: the trials started so far."""
    if config.search == "grid":
        return grid(config.space, encoders)[index]
    searched = dimensions(config.space, encoders)
    if config.search == "optuna" and searched:
        return _by_optuna(config, searched, index, before)
    generator = np.random.default_rng([config.seed, index])
    return {name: _uniform(dimension, generator) for name, dimension in searched.items()}


def _uniform(dimension: Dimension, generator: np.random.Generator) -> Setting:
    if isinstance(dimension, Choice):
        return dimension.values[int(generator.integers(len(dimension.values)))]
    if dimension.log:
        return float(np.exp(generator.uniform(np.log(dimension.low), np.log(dimension.high))))
    return float(generator.uniform(dimension.low, dimension.high))


def _by_optuna(config: SweepConfig, searched: Mapping[str, Dimension], index: int, before: Sequence[Result]) -> Drawn:
    import optuna  # here: the import takes a second, and no other search needs it
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(logging.WARNING)
    space: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(d.values) if isinstance(d, Choice) else FloatDistribution(d.low, d.high, log=d.log)
        for name, d in searched.items()
    }
    # A study in memory, filled from the trials on disk, so that a kill loses nothing.
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=config.seed + index, constant_liar=True))
    states = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "diverged": TrialState.FAIL, "failed": TrialState.FAIL}
    for result in before:
        state = states.get(result.status, TrialState.RUNNING)
        study.add_trial(
            create_trial(
                state=state,
                value=result.final if state is TrialState.COMPLETE else None,
                params=dict(result.drawn),
                distributions=dict(space),
                intermediate_values={figure.point: figure.frechet for figure in result.figures},
            )
        )
    return dict(study.ask(space).params)

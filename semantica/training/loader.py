"""The loader of a training: what the recipe says of the data, in one place, for every worker and for whoever trains without Ray.

In: the recipe, encodings, a selection of their pairs, and which worker of how many this is. Out: its `PairLoader`.
"""

from __future__ import annotations

from semantica.config import require
from semantica.data.location import Location
from semantica.data.pictures import TokensOf
from semantica.denoiser.configs import DenoiserConfig
from semantica.pairs.loader import Batches, LoaderWorker, PairLoader
from semantica.training.recipe import TrainConfig


def training_loader(
    config: TrainConfig,
    encodings: Location,
    selection: Location,
    worker: LoaderWorker = LoaderWorker(),  # noqa: B008 - it is frozen
    *,
    tokens_of: TokensOf | None = None,
) -> PairLoader:
    """The loader of one worker's share. Raises DataError when encodings, selection and recipe do not belong together."""
    channels = config.denoiser.channels
    require(channels == 3, "channels", "3 to train on pictures", channels, of=DenoiserConfig)
    batches = Batches(
        seed=config.seed,
        batch_size=config.batch_size,
        num_lanes=config.num_lanes,
        resolution_px=config.denoiser.resolution_px,
        window_groups=config.window_groups,
        max_images=config.denoiser.max_images,
        signals=config.denoiser.signals,
    )
    return PairLoader(encodings, selection, batches, worker, tokens_of=tokens_of)

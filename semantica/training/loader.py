"""The loader of a training: what the recipe says of the data, in one place, for every worker and for whoever trains without Ray.

In: the recipe, encodings, a selection of their pairs, and which worker of how many this is. Out: its `PairLoader`.
"""

from __future__ import annotations

from semantica.data.location import Location
from semantica.pairs.loader import PairLoader, TokensOf
from semantica.training.recipe import TrainConfig


def training_loader(
    config: TrainConfig,
    encodings: Location,
    selection: Location,
    *,
    rank: int = 0,
    world: int = 1,
    max_open_bytes: int = 2**31,
    tokens_of: TokensOf | None = None,
    num_threads: int = 1,
) -> PairLoader:
    """The loader of one worker's share. Raises DataError when encodings, selection and recipe do not belong together."""
    return PairLoader(
        encodings,
        selection,
        seed=config.seed,
        batch_size=config.batch_size,
        num_lanes=config.num_lanes,
        window_groups=config.window_groups,
        resolution_px=config.denoiser.resolution_px,
        max_images=config.denoiser.max_images,
        rank=rank,
        world=world,
        max_open_bytes=max_open_bytes,
        tokens_of=tokens_of,
        num_threads=num_threads,
    )

"""Stage `encode`: episodes -> encodings, by a pool of actors that each hold the encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

from semantica.data.dataset import Manifest, StageOutput, read_manifest
from semantica.data.location import Location
from semantica.data.schemas import HELD_OUT
from semantica.distributed.runtime import Runtime, device
from semantica.distributed.stage import Pass, Stage, StageSession, build_one, run_stage
from semantica.encoders.encoder import load_encoder
from semantica.encoders.settings import EncodeConfig
from semantica.encoders.shard import EpisodesShard, encode_shard
from semantica.encoders.totals import (
    check_damage,
    counts_of,
    damage_notes,
    finish_encodings,
    finished_shards,
    num_in,
    num_lost,
    num_pictures,
    shards_of,
)
from semantica.tracking import Run


class _EncodeShard:
    """One actor: the encoder, and the shards it is given."""

    def __init__(self, config: EncodeConfig, episodes: Location, out: StageOutput) -> None:
        self.config, self.episodes, self.out = config, episodes, out
        self.encoder = load_encoder(config.encoder, device())

    def __call__(self, shard: EpisodesShard) -> Counter[str]:
        return counts_of(encode_shard(self.out, self.episodes, shard, self.encoder, self.config))


def encode(config: EncodeConfig, *, episodes: Location, out: Location, runtime: Runtime, parent: Run | None = None) -> Manifest:
    """Encode every picture of `episodes` (training and held-out) into `out`. Returns the manifest of the encodings.

    A damaged shard is left out, whole, and named. Raises DataError when more than max_damaged_share of the pictures are lost.
    """
    source = read_manifest(episodes, "episodes")
    most = runtime.max_damaged_share

    def passes(session: StageSession) -> Iterator[Pass[EpisodesShard, Counter[str]]]:
        done = finished_shards(session.out)
        counts = sum(done.values(), Counter[str]())

        def check(result: Counter[str]) -> None:
            """End the stage at the shard that makes the loss too large."""
            counts.update(result)
            check_damage(counts, num_in(source), most)

        yield Pass(
            worker=_EncodeShard,
            arguments=arguments,
            shards=[shard for shard in shards_of(source, ("", HELD_OUT)) if shard.name not in done],
            total=num_in(source) - num_pictures(counts),
            unit="pictures",
            size=num_pictures,
            each=check,
            pool=True,
        )

    def finish(session: StageSession) -> Manifest:
        manifest = finish_encodings(session.out, source, most)
        session.summary = f"{num_in(source) - num_lost(manifest.counts)} pictures by {manifest.facts['encoder']['name']}"
        session.notes += damage_notes(manifest)
        return manifest

    output = StageOutput(out, "encodings", config, {"episodes": source.hash})
    arguments = (config, episodes, output)
    ready = partial(build_one, _EncodeShard, arguments)
    return run_stage(Stage(name="encode", out=output, passes=passes, finish=finish, ready=ready), runtime, parent)

"""Measure pictures and samples by the networks of an evaluation, in a pool of actors that hold them.

In: work (`evaluation.measuring`), which says where the pixels of names lie. Out: shards with a sub-folder for each network, keyed
by name. Receipts say what they hold, so that a network that is added later measures everything and the others nothing again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from semantica.data.dataset import Manifest, StageOutput
from semantica.data.location import Location
from semantica.data.pictures import StoredPictures
from semantica.distributed.runtime import Runtime, device
from semantica.distributed.stage import Pass, Stage, StageSession, run_stage
from semantica.evaluation.features import Features
from semantica.evaluation.measuring import Work, missing_work, rows_by, shard_name
from semantica.evaluation.networks import Networks
from semantica.measure.networks.extractors import FeatureExtractor, PerceptualNet
from semantica.tracking import Run


class MeasureShard:
    """One actor: the networks, loaded when they are first needed, and the work it is given."""

    def __init__(self, networks: Networks, resolution_px: int, batch_size: int, out: StageOutput) -> None:
        self.networks, self.side, self.batch_size, self.out = networks, resolution_px, batch_size, out
        self._loaded: dict[str, FeatureExtractor | PerceptualNet] = {}
        self._stored: dict[tuple[Location, str], StoredPictures] = {}

    def __call__(self, work: Work) -> int:
        """The number of pictures that are measured and written."""
        pictures, columns = work.pictures(self.side, self._pictures), self.networks.columns
        tables = {columns[name]: rows_by(self.network(name), pictures) for name in work.by}
        stats = {"columns": list(tables), "names": list(work.names)}
        self.out.write_shard(shard_name(work, columns), tables, stats)
        return len(pictures)

    def network(self, name: str) -> FeatureExtractor | PerceptualNet:
        """The network, loaded once."""
        if name not in self._loaded:
            self._loaded[name] = self.networks.load(name, device(), self.batch_size)
        return self._loaded[name]

    def _pictures(self, encodings: Location, prefix: str) -> StoredPictures:
        key = (encodings, prefix)
        if key not in self._stored:
            self._stored[key] = StoredPictures(encodings, prefix)
        return self._stored[key]


def measuring_pass(
    work: Sequence[Work], networks: Networks, resolution_px: int, batch_size: int, out: StageOutput
) -> Pass[Work, int]:
    """The pass that measures what `out` does not hold yet."""
    held: dict[str, set[str]] = defaultdict(set)
    for _, stats in out.receipts():
        for column in stats.get("columns", ()):  # none in a shard of an earlier version
            held[column].update(stats["names"])
    todo = list(missing_work(work, networks.columns, held))
    arguments = (networks, resolution_px, batch_size, out)
    total = sum(len(one.names) for one in todo)
    return Pass(worker=MeasureShard, arguments=arguments, shards=todo, total=total, unit="pictures", size=int, pool=True)


def num_measured(out: StageOutput) -> int:
    """How many pictures the shards hold."""
    return len({name for _, stats in out.receipts() for name in stats["names"]})


def measure(
    work: Sequence[Work],
    networks: Networks,
    *,
    encodings: str,
    resolution_px: int,
    batch_size: int,
    out: Location,
    runtime: Runtime,
    parent: Run | None,
) -> Features:
    """The features that `out` holds, after measuring what it does not hold yet. encodings: the hash of the pictures' dataset."""
    config = {"resolution_px": resolution_px, "batch_size": batch_size}
    output = StageOutput(out, "features", config, {"encodings": encodings})
    missing = measuring_pass(work, networks, resolution_px, batch_size, output)
    if missing.shards:
        output.reopen()

    def passes(session: StageSession) -> Iterator[Pass[Work, int]]:
        yield missing

    def finish(session: StageSession) -> Manifest:
        session.summary = f"{missing.total} pictures by {', '.join(networks.columns)}"
        return output.finish({"num_pictures": num_measured(output)}, {"columns": networks.columns})

    run_stage(Stage(name="measure", out=output, passes=passes, finish=finish), runtime, parent)
    return Features.open(out, networks.columns)

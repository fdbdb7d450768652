"""Draw samples, by a pool of actors that each hold the network: stage `generate`, and the samples that an evaluation asks for.

`generate` fills an output of its own, once. `draw_samples` lets a folder grow: asked for more, a finished one draws what is missing
and is finished again. Its receipts name the samples they hold, so none is drawn twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from semantica.conditioning.signals import Signal
from semantica.data.dataset import Manifest, StageOutput, read_manifest
from semantica.data.durable import write_atomically
from semantica.data.location import Location
from semantica.data.pictures import PictureRef, StoredPictures, decode, list_pictures, to_array
from semantica.distributed.runtime import Runtime, device
from semantica.distributed.session import say
from semantica.distributed.stage import Pass, Stage, StageSession, build_one, run_stage
from semantica.encoders.on_the_fly import tokens_on_the_fly
from semantica.errors import ConfigError, DataError
from semantica.evaluation.drawing import Sample, SampleShard, draw, sample_rows
from semantica.evaluation.models import EvaluatedModel, check_same_encoder, check_signals
from semantica.evaluation.requests import Request, batches, drawing_of
from semantica.evaluation.samples import SampleFolder
from semantica.evaluation.sets import EvaluationSet
from semantica.generation.conditions import Conditions, columns_of
from semantica.generation.generate import choose_conditions
from semantica.generation.model import Model
from semantica.generation.settings import GenerateConfig
from semantica.report.pictures import guidance_grid
from semantica.tracking import Run
from semantica.training.checkpoint import open_checkpoint

_PREVIEW_ROWS = 10
COLUMN, ABSENT = "from its column of the encodings", "null (not given, and the encodings have no column of this name)"


class DrawShard:
    """One actor: the network, and the shards it is given. encoder: a folder of the encoder's weights, "" where they lie.

    columns: the signals whose values are columns of the encodings.
    """

    def __init__(
        self,
        settings: GenerateConfig,
        checkpoint: Path,
        encodings: Location,
        out: StageOutput,
        encoder: str = "",
        columns: Collection[str] = (),
    ) -> None:
        self.settings, self.out = settings, out
        self.model = Model.of(open_checkpoint(checkpoint), ema=settings.use_ema).on(device(), settings.speed)
        tokens_of, denoiser = tokens_on_the_fly(read_manifest(encodings, "encodings"), device(), encoder), self.model.network.config
        signals = [signal for signal in denoiser.signals if signal.name in columns]
        self.conditions = Conditions(encodings, tokens_of, signals, denoiser.resolution_px)

    def __call__(self, shard: SampleShard) -> int:
        """The number of samples that are drawn and written."""
        pictures = draw(self.model, self.conditions.read([s.picture for s in shard.samples]), shard, self.settings)
        stats = {"num_samples": len(shard.samples), "names": [sample.sample_id for sample in shard.samples]}
        self.out.write_shard(shard.name, {"": sample_rows(shard, pictures)}, stats)
        return len(shard.samples)


def draw_samples(
    requests: Sequence[Request],
    *,
    model: EvaluatedModel,
    data: EvaluationSet,
    settings: GenerateConfig,
    encoder: str,
    out: Location,
    runtime: Runtime,
    parent: Run | None,
) -> Manifest:
    """Draw what `out` does not hold yet. Returns the manifest of its samples, which are those of earlier requests too.

    encoder: a folder of the encoder's weights, "" where the encodings' own lie.
    """
    output = StageOutput(out, "drawn", drawing_of(settings), {"encodings": data.hash, "checkpoint": model.checkpoint.hash})
    drawn = {name for _, stats in output.receipts() for name in stats["names"]}
    todo = shards_of(requests, data, settings.batch_size, drawn)
    total = sum(len(shard.samples) for shard in todo)
    if todo:
        output.reopen()

    arguments = (settings, model.checkpoint.folder, data.encodings, output, encoder)

    def passes(session: StageSession) -> Iterator[Pass[SampleShard, int]]:
        yield Pass(worker=DrawShard, arguments=arguments, shards=todo, total=total, unit="samples", size=int, pool=True)

    def finish(session: StageSession) -> Manifest:
        session.summary = f"{total} samples of {model.name} for pictures of {data.name}"
        num = sum(len(stats["names"]) for _, stats in output.receipts())
        return output.finish({"num_samples": num}, {"resolution_px": model.checkpoint.config.denoiser.resolution_px})

    ready = partial(build_one, DrawShard, arguments)
    return run_stage(Stage(name="draw", out=output, passes=passes, finish=finish, ready=ready), runtime, parent)


def shards_of(requests: Sequence[Request], data: EvaluationSet, batch_size: int, drawn: Collection[str]) -> list[SampleShard]:
    """The batches of the requests that are not drawn yet, with the places of their conditioning images."""
    return [
        SampleShard(b.name, b.guidance, b.seed, tuple(Sample(r.name, data.pictures[r.image_id], r.index) for r in b.requests))
        for b in batches(requests, batch_size, drawn)
    ]


def generate(
    config: GenerateConfig, *, checkpoint: Path, encodings: Location, out: Path, runtime: Runtime, parent: Run | None = None
) -> Manifest:
    """Draw samples for held-out conditioning images of `encodings` into `out`. Returns the manifest of the samples.

    checkpoint: a checkpoint's folder, or one that holds it (the output of semantica train, or of a pipeline).
    """
    source, opened = read_manifest(encodings, "encodings"), open_checkpoint(checkpoint)
    check_same_encoder(opened.provenance.encoder["identity"], source)
    if config.similarity is not None and not opened.config.denoiser.similarity:
        raise ConfigError(
            "generate.similarity: the checkpoint's denoiser takes none; train one with train.denoiser.similarity, or leave it out"
        )
    denoiser = opened.config.denoiser
    check_signals(denoiser, config.signals, config.beyond, GenerateConfig)
    told = origins(config, denoiser.signals, columns_of(encodings, denoiser.signals))
    columns = tuple(name for name, origin in told.items() if origin == COLUMN)
    inputs = {"encodings": source.hash, "checkpoint": opened.hash} | ({"columns": " ".join(columns)} if columns else {})
    output = StageOutput(out.absolute(), "samples", config, inputs)
    arguments = (config, opened.folder, encodings, output, "", columns)
    if told:
        say(f"{'generate':<9} signals: {', '.join(f'{name} {origin}' for name, origin in told.items())}")

    def ready(session: StageSession) -> None:
        _chosen(config, encodings)
        build_one(DrawShard, arguments, session)

    def passes(session: StageSession) -> Iterator[Pass[SampleShard, int]]:
        todo = [shard for shard in _shards(config, _chosen(config, encodings)) if not output.has_shard(shard.name)]
        total = sum(len(shard.samples) for shard in todo)
        yield Pass(worker=DrawShard, arguments=arguments, shards=todo, total=total, unit="samples", size=int, pool=True)

    def finish(session: StageSession) -> Manifest:
        chosen = _chosen(config, encodings)
        num = len(chosen) * config.samples_per_condition * len(config.guidance)
        session.summary = f"{num} samples for {len(chosen)} conditioning images"
        side = opened.config.denoiser.resolution_px
        facts = {"conditions": [[c.image_id, c.episode_id] for c in chosen], "resolution_px": side}
        facts |= {"signals": told} if told else {}
        manifest = output.finish({"num_conditions": len(chosen), "num_samples": num}, facts)
        # Beside the dataset, not of it: made from it, for a person to look at first.
        preview = _preview(config, chosen[:_PREVIEW_ROWS], encodings, out.absolute(), side)
        write_atomically(out.absolute() / "preview.png", preview)
        session.run.image(preview, "samples-against-guidance")
        return manifest

    return run_stage(Stage(name="generate", out=output, passes=passes, finish=finish, ready=ready), runtime, parent)


def origins(config: GenerateConfig, signals: Sequence[Signal], columns: Collection[str]) -> dict[str, str]:
    """Where the values of each declared signal come from: the settings, before a column of the encodings; else it is null."""
    given = {text.partition("=")[0]: f"as given ({text})" for text in config.signals}
    return {one.name: given.get(one.name, COLUMN if one.name in columns else ABSENT) for one in signals}


def _chosen(config: GenerateConfig, encodings: Location) -> list[PictureRef]:
    chosen = choose_conditions(list_pictures(encodings), config.num_conditions, config.seed)
    if not chosen:
        raise DataError(f"generate: {encodings} holds no held-out pictures; ingest with held_out_share above 0")
    return chosen


def _shards(config: GenerateConfig, chosen: Sequence[PictureRef]) -> Iterator[SampleShard]:
    size = config.batch_size
    wanted = [(picture, index) for index in range(config.samples_per_condition) for picture in chosen]
    for number, w in enumerate(config.guidance):
        for start in range(0, len(wanted), size):
            some = wanted[start : start + size]
            samples = tuple(Sample(f"{picture.image_id}/{index}/{w:g}", picture, index) for picture, index in some)
            yield SampleShard(f"w{number:02d}-{start // size:05d}", w, config.seed, samples, is_filled=False)


def _preview(config: GenerateConfig, shown: Sequence[PictureRef], encodings: Location, samples: Path, side: int) -> bytes:
    """A PNG: each conditioning image as it is stored, then its first sample at each w."""
    first = partial(Request, "", "", index=0, seed=config.seed)
    requests = [first(image_id=picture.image_id, guidance=w) for picture in shown for w in config.guidance]
    pixels = SampleFolder(samples, "samples").read(requests, side)
    rows = [[pixels[first(image_id=p.image_id, guidance=w).name] for w in config.guidance] for p in shown]
    stored = StoredPictures(encodings, stage="generate").read(shown)
    return guidance_grid([to_array(decode(stored[p.image_id], p.side_px)) for p in shown], rows, weights=config.guidance).png

"""Evaluation: checkpoints or given samples -> features, figures and a report. Here is only the plan; stages do the work.

Every decision is a pure function of `semantica.evaluation`. `evaluate` makes evaluation sets, draws what protocols ask for,
measures it and writes the report into `out`, whose folders data/, samples/ and features/ grow when more is asked for.
`evaluate_samples` is the last stage of a pipeline: it measures samples of semantica generate, in one pass, for the protocol
`overview`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from semantica.config import from_dict, require, to_dict
from semantica.data.dataset import Manifest, StageOutput, read_manifest
from semantica.data.durable import write_atomically
from semantica.data.location import Location, location
from semantica.data.pictures import list_pictures
from semantica.distributed.encode import encode
from semantica.distributed.ingest import ingest
from semantica.distributed.measure import measure, measuring_pass, num_measured
from semantica.distributed.runtime import Runtime
from semantica.distributed.sample import draw_samples
from semantica.distributed.session import check_absolute_when_submitted, parent_run, say
from semantica.distributed.stage import Pass, Stage, StageSession, run_stage
from semantica.encoders.settings import EncodeConfig, EncoderConfig
from semantica.errors import DataError
from semantica.evaluation.features import Features
from semantica.evaluation.figures import CellFigures, Measurer
from semantica.evaluation.measuring import Work, stored_work, work_of
from semantica.evaluation.models import (
    EvaluatedModel,
    check_same_encoder,
    check_signals,
    check_similarity,
    last_of_runs,
    open_models,
)
from semantica.evaluation.networks import Networks, chosen_networks, find_networks, usual_networks
from semantica.evaluation.outcome import NO_SOURCES, Outcome, Sources, TrainPictures
from semantica.evaluation.protocols import cells_of, chosen, without_classes
from semantica.evaluation.requests import Cell, Request, content_hash, kind_of, names_of, requests_of
from semantica.evaluation.samples import SampleFolder
from semantica.evaluation.sets import (
    EvaluationSet,
    by_image,
    ingest_settings,
    look,
    open_set,
    quarantined_of,
    without_pictures,
)
from semantica.evaluation.settings import EvaluationConfig, OverviewConfig
from semantica.evaluation.summary import build_report
from semantica.generation.generate import choose_conditions
from semantica.generation.settings import GenerateConfig
from semantica.measure.networks.extractors import ENCODER
from semantica.report.page import Report, render, to_json
from semantica.tracking import Run
from semantica.training.checkpoint import Checkpoint, checkpoint_folder, open_checkpoint


@dataclass(frozen=True)
class _Job:
    """What every step of one evaluation is given."""

    settings: EvaluationConfig
    models: Sequence[EvaluatedModel]
    out: Path
    runtime: Runtime
    parent: Run
    encoder: str
    sources: Sources

    @property
    def side(self) -> int:
        return self.models[0].checkpoint.config.denoiser.resolution_px

    @property
    def picture_px(self) -> int:
        """The side that pictures are stored with: enough for every encoder and for what is drawn."""
        seen = [int(m.checkpoint.provenance.encoder["identity"]["image_px"]) for m in self.models]
        return self.settings.picture_px or max(*seen, self.side)


def evaluate(
    settings: EvaluationConfig,
    *,
    checkpoints: Mapping[str, str],
    data: Mapping[str, str],
    out: Path,
    runtime: Runtime,
    encoder: str = "",
    sources: Sources = NO_SOURCES,
) -> Report:
    """Run the protocols of `settings` for `checkpoints` (name -> path) on `data` (name -> path or URI) into `out`.

    encoder: a folder with the encoder's weights, where they are not where the training found them. What is done is skipped; asked
    for more in the same `out`, only what is missing is drawn and measured. Returns the report, which is also written and logged.
    """
    check_absolute_when_submitted(out)
    out = out.absolute()
    protocols = chosen(settings).values()
    for name, where in data.items():
        look(name, location(where))  # before anything starts
    unknown = sorted(set(settings.own_copies) - set(data))
    require(not unknown, "num_copies_of", f"names of --data ({', '.join(data)})", ", ".join(unknown), of=EvaluationConfig)
    models = open_models(dict(checkpoints), every_step=any(one.every_step for one in protocols))
    check_similarity(models, settings.similarity)
    for model in models:
        check_signals(model.checkpoint.config.denoiser, settings.signals, settings.beyond, EvaluationConfig)
    settings, left_out = chosen_networks(settings)
    trained_with = models[0].checkpoint.provenance.encoder
    config = dict(trained_with["config"]) | ({"weights": encoder} if encoder else {})
    networks = find_networks(settings, config, trained_with["identity"])
    asked = {"settings": to_dict(settings), "checkpoints": {m.name: m.hash for m in models}, "data": dict(data)}
    with parent_run("evaluate", out, runtime, work=content_hash(asked)) as (parent, inner):
        parent.params(asked)
        outcome = _outcome(_Job(settings, models, out, inner, parent, encoder, sources), networks, data)
        report = build_report(outcome, notes=left_out)
        publish(report, out, parent)
    for line in report.summary:
        say(f"{'':<9} {line}")
    return report


def publish(report: Report, out: Path, run: Run) -> None:
    """Write and log the report: first the figures, which took hours, then the page."""
    write_atomically(out / "report.json", json.dumps(to_json(report), indent=1).encode())
    run.metrics({f.name: f.value for f in report.figures if isinstance(f.value, (int, float))})
    write_atomically(out / "report.html", render(report).encode())
    for name in ("report.html", "report.json"):
        run.artifact(out / name)
    for grid in report.grids:
        run.image(grid.png, grid.title.lower().replace(" ", "-").replace(",", ""))


def _outcome(job: _Job, networks: Networks, data: Mapping[str, str]) -> Outcome:
    """Draw and measure what the protocols ask for."""
    sets = _sets(job, data)
    first = {name: sets[job.models[0].name][name] for name in data}
    left_out = without_classes(job.settings, list(first.values()))
    cells = cells_of(job.settings, [m.name for m in job.models], last_of_runs(job.models), list(data), left_out)
    hashes = {model.name: model.hash for model in job.models}
    requests = {cell: requests_of(cell, hashes.get(cell.model, ""), first[cell.data], job.settings) for cell in cells}
    samples = {}
    for model in job.models:
        for name in data:
            folder = model.samples_in(job.out, name)
            samples[model.name, name] = SampleFolder(folder)
            wanted = [r for cell, of in requests.items() if (cell.model, cell.data) == (model.name, name) for r in of]
            if wanted:
                draw_samples(
                    wanted,
                    model=model,
                    data=sets[model.name][name],
                    settings=job.settings.draws(),
                    encoder=job.encoder,
                    out=folder,
                    runtime=job.runtime,
                    parent=job.parent,
                )
    planned = Measurer(job.settings, {}, first)
    features = {}
    for name, one in first.items():
        work = work_of(one, cells, requests, samples, planned)
        if work:
            features[name] = _features(job, work, networks, one.hash, name)
    needs_train = any(one.needs_train for one in chosen(job.settings).values())
    mean = np.array(job.models[0].checkpoint.provenance.corpus_mean) if job.settings.centred else None
    measurer = Measurer(job.settings, features, first, mean, job.out / "references", networks.identities)
    return Outcome(
        job.settings,
        job.models,
        first,
        networks,
        job.side,
        measured(cells, requests, measurer),
        requests,
        samples,
        measurer,
        _train_pictures(job, networks) if needs_train and job.sources.train is not None else None,
        job.sources,
    )


def measured(
    cells: Mapping[Cell, Sequence[str]], requests: Mapping[Cell, Sequence[Request]], measurer: Measurer
) -> dict[Cell, CellFigures]:
    """The figures of every cell that has some. A baseline of fewer than two pictures has none."""
    results = {}
    for cell, networks in cells.items():
        names = names_of(cell, requests[cell], measurer.sets[cell.data], measurer.settings)
        if networks and kind_of(cell).has_figures and (cell.is_drawn or len(names) >= 2):
            results[cell] = measurer.measure(cell, requests[cell], networks)
    return results


def _sets(job: _Job, data: Mapping[str, str]) -> dict[str, dict[str, EvaluationSet]]:
    """model -> data -> the set in the encodings that this model is conditioned on."""
    sets: dict[str, dict[str, EvaluationSet]] = {}
    by_encoder: dict[tuple[str, str], EvaluationSet] = {}
    for model in job.models:
        identity = dict(model.checkpoint.provenance.encoder["identity"])
        for name, where in data.items():
            key = (name, content_hash(identity))
            if key not in by_encoder:
                by_encoder[key] = _prepare_set(job, name, location(where), model.checkpoint)
                by_encoder[key].check_side(job.side)
            sets.setdefault(model.name, {})[name] = by_encoder[key]
    return sets


def _prepare_set(job: _Job, name: str, root: Location, checkpoint: Checkpoint) -> EvaluationSet:
    """The evaluation set at `root`, encoded with the checkpoint's encoder.

    Pictures, class folders, Parquet and episodes go through the stages that training data went through, with everything held out;
    encodings are taken as they are. Raises DataError for data that is no set, and for encodings of another encoder.
    """
    kind = look(name, root)
    trained_with = dict(checkpoint.provenance.encoder["identity"])
    if kind.kind == "encodings":
        given = read_manifest(root, "encodings")
        check_same_encoder(trained_with, given)
        return open_set(name, root, quarantined=quarantined_of(given))
    episodes, empty = root, without_pictures(root, kind.labels)
    folder = job.out / "data" / name
    if kind.source is not None:
        episodes = folder / "episodes"
        if len(empty) == len(kind.labels) and kind.labels:
            raise DataError(f"--data {name}: no pictures in the {len(empty)} folders of {root}")
        settings = ingest_settings(kind.source, job.picture_px)
        ingest(settings, root=root, out=episodes, runtime=job.runtime, parent=job.parent)
    values = dict(checkpoint.provenance.encoder["config"]) | ({"weights": job.encoder} if job.encoder else {})
    encoder, size = from_dict(EncoderConfig, values), job.settings.batch_size
    encodings = folder / f"encodings-{content_hash(trained_with)[:8]}"
    how = EncodeConfig(encoder=encoder, store_tokens=False, batch_size=size, rows_per_group=1)
    encoded = encode(how, episodes=episodes, out=encodings, runtime=job.runtime, parent=job.parent)
    check_same_encoder(trained_with, encoded)
    return open_set(name, encodings, quarantined=quarantined_of(encoded), all_labels=kind.labels)


def _features(job: _Job, work: Sequence[Work], networks: Networks, encodings: str, name: str) -> Features:
    return measure(
        work,
        networks,
        encodings=encodings,
        resolution_px=job.side,
        batch_size=job.settings.batch_size,
        out=job.out / "features" / name,
        runtime=job.runtime,
        parent=job.parent,
    )


def _train_pictures(job: _Job, networks: Networks) -> TrainPictures:
    """Up to num_train training pictures in the encoder's features. Raises DataError for encodings of another training."""
    assert job.sources.train is not None
    where, expected = job.sources.train, job.models[0].checkpoint.provenance.encodings
    content = read_manifest(where, "encodings").hash
    if content != expected:
        raise DataError(
            f"--train {where}: {job.models[0].name} was trained on others ({expected[:12]}, not {content[:12]}); give those"
        )
    pictures = by_image(list_pictures(where, ""))
    some = choose_conditions(list(pictures.values()), job.settings.num_train, job.settings.seed)
    names = sorted(picture.image_id for picture in some)
    by = (ENCODER,) if ENCODER in networks.columns else tuple(networks.columns)
    only = replace(networks, columns={name: networks.columns[name] for name in by})
    work = stored_work(where, {name: pictures[name] for name in names}, by, "")
    return TrainPictures(_features(job, work, only, content, "_train"), names)


@dataclass(frozen=True)
class GivenSamples:
    """An output of semantica generate, drawn from `checkpoint` for held-out pictures of `encodings`."""

    folder: Location
    checkpoint: Path
    encodings: Location


def evaluate_samples(
    config: OverviewConfig,
    given: GivenSamples,
    *,
    out: Path,
    runtime: Runtime,
    parent: Run | None = None,
    sources: Sources = NO_SOURCES,
) -> Manifest:
    """Measure given samples beside training pictures, noise and Copy; write features, report.html and report.json to `out`."""
    drawn, source = read_manifest(given.folder, "samples"), read_manifest(given.encodings, "encodings")
    checkpoint = open_checkpoint(checkpoint_folder(given.checkpoint))
    _check_belong_together(drawn, source, checkpoint)
    extractor, perceptual, notes = usual_networks(inception=config.inception, perceptual=config.perceptual)
    drawing = from_dict(GenerateConfig, dict(drawn.config))
    num = drawn.counts["num_samples"] // len(drawing.guidance)
    settings = EvaluationConfig.of_samples(config, drawing, num, extractor, perceptual)
    networks = find_networks(settings, source.config["encoder"], source.facts["encoder"])
    title = networks.identities[perceptual[0]].title if perceptual else ""
    inputs = {"samples": drawn.hash, "encodings": source.hash}
    here = {"inception_found": len(extractor) > 1, "perceptual_name": title}
    output = StageOutput(out.absolute(), "evaluation", config, inputs, further=here)
    side = drawn.facts["resolution_px"]

    def passes(session: StageSession) -> Iterator[Pass[Work, int]]:
        one, cells, requests, samples = _given(given, settings, checkpoint)
        work = work_of(one, cells, requests, samples, Measurer(settings, {}, {one.name: one}))
        yield measuring_pass(work, networks, side, settings.batch_size, output)

    def finish(session: StageSession) -> Manifest:
        one, cells, requests, samples = _given(given, settings, checkpoint)
        whole = Manifest(output.kind, output.record, output.inputs, {}, {}, tuple(output.files()))
        mean = np.array(checkpoint.provenance.corpus_mean) if config.centred else None
        features = {one.name: Features(output.folder, whole, networks.columns)}
        measurer = Measurer(settings, features, {one.name: one}, mean, by_place=True)
        results = measured(cells, requests, measurer)
        models = [EvaluatedModel(_MODEL, _MODEL, checkpoint)]
        told = replace(sources, samples=given.folder)
        outcome = Outcome(settings, models, measurer.sets, networks, side, results, requests, samples, measurer, None, told)
        report = build_report(outcome, notes=notes)
        publish(report, out.absolute(), session.run)
        session.notes = list(report.summary)
        counts = {"num_pictures": num_measured(output)}
        session.summary = f"{counts['num_pictures']} pictures measured"
        return output.finish(counts, {}, ["report.html", "report.json"])

    return run_stage(Stage(name="evaluate", out=output, passes=passes, finish=finish), runtime, parent)


_MODEL, _SET = "model", "held-out"  # what the one model and the one set of given samples are called

_Plan = tuple[EvaluationSet, dict[Cell, tuple[str, ...]], dict[Cell, list[Request]], dict[tuple[str, str], SampleFolder]]


def _given(given: GivenSamples, settings: EvaluationConfig, checkpoint: Checkpoint) -> _Plan:
    """(the set, the cells with their networks, their samples, where these lie) of given samples."""
    one = open_set(_SET, given.encodings)
    cells = cells_of(settings, [_MODEL], [_MODEL], [_SET])
    requests = {cell: requests_of(cell, checkpoint.hash[:12], one, settings) for cell in cells}
    return one, cells, requests, {(_MODEL, _SET): SampleFolder(given.folder, "samples")}


def _check_belong_together(drawn: Manifest, source: Manifest, checkpoint: Checkpoint) -> None:
    """Raise DataError unless the samples were drawn by this checkpoint for pictures of these encodings."""
    for name, given in (("checkpoint", checkpoint.hash), ("encodings", source.hash)):
        if drawn.inputs[name] != given:
            raise DataError(
                f"evaluate: the samples were drawn from another {name} ({drawn.inputs[name][:12]}) than the one given "
                f"({given[:12]}); give the {name} that semantica generate was given"
            )

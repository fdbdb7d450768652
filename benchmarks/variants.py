"""What benchmarks.orderings trains and compares: the variants of a preset, what is measured of each, and the paper's orderings.

All variants of a budget see the same number of pictures. The recipe's rate is constant after the warm-up, as in the paper, so that
a figure in the middle of a training is what a shorter one would have given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.verdicts import Comparison, Ordering, Place
from semantica.denoiser.configs import shapes
from semantica.presets import PipelineConfig
from semantica.report.paper import ORDERINGS as PAPER_ORDERINGS
from semantica.training.recipe import TrainConfig

Source = Literal["run", "labelled", "pages", "siglip"]
FRECHET, SIMILARITY, PERCEPTUAL = "frechet", "similarity", "perceptual"
FINAL = "final"
EMA_SHARE = 3  # the average reaches back over a third of the budget


@dataclass(frozen=True)
class Variant:
    """One way to train. trains_on: the run's pages, those of the labelled set, those kept from it, or the SigLIP run's.

    cells: (kind, evaluation set, w) of what is measured at the end; has_curve: "pictures" of the whole run at w = 0 on the way too.
    """

    name: str
    about: str
    patched: bool = True
    film: bool = False
    filtered: bool = True
    higher_rate: bool = False
    trains_on: Source = "run"
    cells: tuple[tuple[str, str, float], ...] = (("pictures", "held_out", 0.0),)
    has_curve: bool = True


_DOMAINS = tuple(("pictures", name, 0.0) for name in ("labelled", "pages", "unseen"))
_GUIDED = tuple(("pictures", "held_out", w) for w in (0.0, 0.5, 1.0))
_SHOTS = (("classes", "held_out", 0.0), ("classes", "held_out", 0.5), ("copy", "held_out", 0.0))

VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant("baseline", "2×2 patching, cross-attention, the preset's band, half the improved rate"),
        Variant("film", "baseline with FiLM of the pooled embedding", film=True),
        Variant("unfiltered", "baseline on all pairs of a page", filtered=False),
        Variant("no_patching", "baseline without patching, with one more convolution stage", patched=False),
        Variant("higher_rate", "baseline at twice the rate", higher_rate=True),
        Variant(
            "improved",
            "no patching and twice the rate, as the paper's final model",
            patched=False,
            higher_rate=True,
            cells=(*_GUIDED, *_SHOTS),
        ),
        Variant(
            "label_grouped",
            "improved on the labelled set alone, an episode a class, unfiltered",
            patched=False,
            higher_rate=True,
            filtered=False,
            trains_on="labelled",
            cells=_DOMAINS,
            has_curve=False,
        ),
        Variant(
            "page_grouped",
            "improved on pages that are not of the labelled set",
            patched=False,
            higher_rate=True,
            trains_on="pages",
            cells=_DOMAINS,
            has_curve=False,
        ),
        Variant("siglip", "baseline with SigLIP tokens", trains_on="siglip"),
        Variant("siglip_film", "film with SigLIP's pooled embedding", film=True, trains_on="siglip"),
    )
}


def address(when: str | int, kind: str, data: str, w: float | int, metric: str) -> str:
    """Where a figure stands in a result. when: "final" or the step."""
    return f"{when}/{kind}/{data}/w{w:g}/{metric}"


def _of_two(better: str, worse: str, data: str = "held_out") -> Comparison:
    where = address(FINAL, "pictures", data, 0, FRECHET)
    return Comparison(Place(better, where), Place(worse, where))


def _guided(metric: str, *, higher_wins: bool = False) -> Comparison:
    at, without = (Place("improved", address(FINAL, "pictures", "held_out", w, metric)) for w in (0.5, 0))
    return Comparison(at, without, higher_wins=higher_wins)


_SHOT = Comparison(
    Place("improved", address(FINAL, "classes", "held_out", 0, FRECHET)),
    Place("improved", address(FINAL, "copy", "held_out", 0, FRECHET)),
)
_SIGLIP = "a run of the same pictures encoded with SigLIP (--siglip); its weights are not in a package registry"
# The paper's key -> the comparison that decides here, what it needs, and in what it departs from the claim.
_DECIDED_BY: dict[str, tuple[Comparison, str, str]] = {
    "cross_attention_beats_film": (_of_two("baseline", "film"), "", "equal pictures seen, not equal FLOPs"),
    "dinov2_beats_siglip_with_cross_attention": (_of_two("baseline", "siglip"), _SIGLIP, ""),
    "siglip_beats_dinov2_with_film": (_of_two("siglip_film", "film"), _SIGLIP, ""),
    "filtered_beats_unfiltered": (_of_two("baseline", "unfiltered"), "", "asked for any gain; the paper's is > 10 FID"),
    "no_patching_beats_baseline": (_of_two("no_patching", "baseline"), "", "equal pictures seen, not equal FLOPs"),
    "higher_rate_beats_baseline": (_of_two("higher_rate", "baseline"), "", ""),
    "label_grouped_wins_in_domain": (_of_two("label_grouped", "page_grouped", "labelled"), "", "other pictures, and fewer of them"),
    "page_grouped_wins_out_of_domain": (
        _of_two("page_grouped", "label_grouped", "unseen"),
        "",
        "on pages that neither saw; the page-grouped model learnt from far fewer pictures than a crawl has",
    ),
    "one_shot_beats_copy": (_SHOT, "", "at w = 0"),
    "guidance_lowers_fid": (_guided(FRECHET), "", "w = 0.5 against 0"),
    "guidance_lowers_lpips": (_guided(PERCEPTUAL), "the weights of a perceptual net", "w = 0.5 against 0; ST-LPIPS, not LPIPS"),
}

ORDERINGS: tuple[Ordering, ...] = (
    *(Ordering(key, claim, *_DECIDED_BY[key]) for key, claim, _ in PAPER_ORDERINGS),
    Ordering(
        "guidance_raises_similarity",
        "guidance raises the cosine to the conditioning image",
        _guided(SIMILARITY, higher_wins=True),
        caveat="w = 0.5 against 0; our own figure, not the paper's",
    ),
    Ordering(
        "page_grouped_wins_on_its_own_pages",
        "on held-out pictures of the page-grouped model's own pages, that model has the lower FID",
        _of_two("page_grouped", "label_grouped", "pages"),
        caveat="its own domain: no claim of the paper's, the counterpart of the label-grouped model's",
    ),
)


def train_config(
    variant: Variant, made: PipelineConfig, encoder: dict[str, Any], *, budget: int, points: int, seed: int
) -> TrainConfig:
    """The recipe of a variant of a preset for `budget` steps. encoder: the identity of the encoder of its encodings.

    A preset without patching is the paper's improved recipe already, so its rate is the higher one; else it is the baseline's.
    """
    train = made.train
    patched, unpatched = shapes(train.denoiser)
    rate = train.optimizer.learning_rate * (0.5 if train.denoiser.patch_px == 1 else 1.0) * (2 if variant.higher_rate else 1)
    denoiser = replace(
        patched if variant.patched else unpatched,
        conditioning="film" if variant.film else "cross_attention",
        token_dim=encoder["token_dim"],
        num_tokens=encoder["num_tokens"],
        pooled_dim=encoder["pooled_dim"],
    )
    warmup = min(train.optimizer.warmup_steps, budget // 10)
    decay = min(train.ema.decay, max(0.0, 1 - EMA_SHARE / budget))
    return replace(
        train,
        denoiser=denoiser,
        optimizer=replace(train.optimizer, learning_rate=rate, warmup_steps=warmup, cooldown_steps=0),
        ema=replace(train.ema, decay=decay),
        num_steps=budget,
        log_every=max(1, budget // 12),
        sample_every=max(1, budget // points) if variant.has_curve else budget,
        checkpoint_every=budget,
        seed=seed,
    )

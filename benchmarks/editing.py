"""python -m benchmarks.editing --run RUN: the editing methods on held-out pictures of a run, beside baselines, with their bars.

RUN is the output of a quickstart or a pipeline. Errors are standard errors over pictures; a comparison with a baseline is paired.
Fréchet distances are of the encoder's pooled embeddings of pictures at the model's resolution. They are biased upward at this
number of pictures, all alike, and have no error: compare them with each other only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

import semantica
from benchmarks.record import Measured, record
from semantica.applications.ilvr import low_pass
from semantica.data.pictures import StoredPictures, decode, list_pictures, to_array
from semantica.generation.generate import choose_conditions
from semantica.measure.frechet import FeatureStatistics, frechet_distance

STRENGTHS, FACTORS, STEPS = (0.2, 0.4, 0.6, 0.8, 1.0), (2, 4, 8, 16), (10, 25, 50)
Pictures = Sequence[Image.Image]


@dataclass(frozen=True)
class Case:
    """A model, its held-out pictures at its resolution, and how it draws here."""

    model: Any
    photos: list[Image.Image]
    num_steps: int

    @classmethod
    def of(cls, run: Path, num: int, num_steps: int) -> Case:
        """The model of a run and up to `num` of its held-out pictures."""
        model, encodings = semantica.load(run / "checkpoint", "cpu"), run / "encodings"
        chosen = choose_conditions(list_pictures(encodings), num, 0)
        stored, side = StoredPictures(encodings, stage="editing").read(chosen), model.model.shape[-1]
        photos = [Image.fromarray(to_array(decode(stored[c.image_id], c.side_px))) for c in chosen]
        return cls(model, [photo.resize((side, side), Image.Resampling.LANCZOS) for photo in photos], num_steps)

    def drawn(self, method: Callable[..., list[list[Image.Image]]], *words: object, **settings: object) -> list[Image.Image]:
        """One sample per picture of a method."""
        return [row[0] for row in method(*words, num_steps=self.num_steps, **settings)]

    def pooled(self, pictures: Pictures) -> Tensor:
        """What the encoder says of pictures."""
        cond, _ = self.model.conditioning([[picture] for picture in pictures])
        return cond.pooled[:, 0]

    def distance(self, pictures: Pictures) -> float:
        """The Fréchet distance to the held-out pictures."""
        ours, real = (FeatureStatistics.of(self.pooled(some).numpy().astype(np.float64)) for some in (pictures, self.photos))
        return float(frechet_distance(ours, real))


def values(pictures: Pictures) -> Tensor:
    """x (B, 3, H, W) in [-1, 1]."""
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in pictures])


def squared(one: Tensor, other: Tensor) -> Tensor:
    """The mean squared distance of each picture."""
    return (one - other).pow(2).flatten(1).mean(1)


def error(each: Tensor) -> float:
    """The standard error of the mean."""
    return float(each.std() / len(each) ** 0.5)


def edits(case: Case) -> list[Measured]:
    """SDEdit: faithfulness against realism, from guides of six blurred colours."""
    guides = [p.quantize(6).convert("RGB").resize((8, 8)).resize(p.size, Image.Resampling.BICUBIC) for p in case.photos]
    rows, far, real = [], [], []
    for strength in STRENGTHS:
        drawn = case.drawn(case.model.edit, guides, case.photos, strength=strength)
        far.append(squared(values(drawn), values(guides)))
        real.append(case.distance(drawn))
        rows.append(Measured(name=f"edit: distance to the guide, strength {strength:g}",
                             figure=float(far[-1].mean()), unit=f"± {error(far[-1]):.2g}"))  # fmt: skip
        rows.append(Measured(name=f"edit: Fréchet distance, strength {strength:g}", figure=real[-1], unit=""))
    means = [float(each.mean()) for each in far]
    own = case.distance(guides)
    holds = all(a < b for a, b in pairwise(means))
    rows.append(
        Measured(name="edit: distance to the guide rises with strength", figure=float(holds), unit="", target="1", holds=holds)
    )
    better = min(real[:-1]) < own
    rows.append(Measured(name="edit: best Fréchet distance below strength 1", figure=min(real[:-1]), unit="",
                         target="below the guides'", holds=better, peer=f"guides {own:.4g}"))  # fmt: skip
    return rows


def refined(case: Case) -> list[Measured]:
    """ILVR: the distance of low frequencies to the reference, against samples without a reference."""
    like = [*case.photos[1:], case.photos[0]]
    free, x, rows, shares = values(case.drawn(case.model, like, num_samples=1)), values(case.photos), [], []
    for factor in FACTORS:
        drawn = values(case.drawn(case.model.refine, case.photos, like, factor=factor))
        ours, none = (squared(low_pass(some, factor), low_pass(x, factor)) for some in (drawn, free))
        shares.append(float(ours.mean() / none.mean()))
        rows.append(Measured(name=f"refine: low-pass distance, N = {factor}", figure=float(ours.mean()),
                             unit=f"± {error(ours):.2g}", target="< 0.1 of unguided", holds=shares[-1] < 0.1,
                             peer=f"unguided {float(none.mean()):.4g}"))  # fmt: skip
    return rows


def inpainted(case: Case) -> list[Measured]:
    """Inpainting by replacement, conditioned on the picture itself, against filling with means and smoothly."""
    side = case.photos[0].width
    hole = torch.zeros(side, side, dtype=torch.bool)
    hole[side // 4 : side * 5 // 8, side // 4 : side * 5 // 8] = True
    x = values(case.photos)
    mean = torch.where(hole, (x * ~hole).sum((2, 3), keepdim=True) / (~hole).sum(), x)
    smooth = mean.clone()
    for _ in range(400):
        smooth = torch.where(hole, F.avg_pool2d(F.pad(smooth, (1, 1, 1, 1), mode="replicate"), 3, 1), x)
    results: dict[str, Tensor] = {"mean fill": mean, "smooth fill": smooth}
    for name, resample in (("inpaint", 1), ("inpaint, resample 3", 3)):
        results[name] = values(case.drawn(case.model.inpaint, case.photos, hole.float(), case.photos, resample=resample, jump=4))
    pictures = {name: as_pictures(some) for name, some in results.items()}
    in_hole = {name: (some - x)[:, :, hole].pow(2).flatten(1).mean(1) for name, some in results.items()}
    alike = {name: F.cosine_similarity(case.pooled(some), case.pooled(case.photos)) for name, some in pictures.items()}
    rows = []
    for name in results:
        is_ours = name.startswith("inpaint")
        for what, each, better in (("mean squared error in the hole", in_hole, -1), ("cosine to the whole picture", alike, 1)):
            gains = [better * (each[name] - each[fill]) for fill in ("mean fill", "smooth fill")]
            holds = all(float(g.mean()) > 2 * error(g) for g in gains) if is_ours else None
            rows.append(Measured(name=f"{name}: {what}", figure=float(each[name].mean()), unit=f"± {error(each[name]):.2g}",
                                 target="better than both fills by 2 s.e." if is_ours else None, holds=holds))  # fmt: skip
        rows.append(Measured(name=f"{name}: Fréchet distance", figure=case.distance(pictures[name]), unit=""))
    return rows


def inverted(case: Case) -> list[Measured]:
    """Inversion: how exactly pictures come back, and where it fails."""
    x, rows = values(case.photos), []
    runs = [(steps, iterations, 0.0) for steps in STEPS for iterations in (1, 10)] + [(50, 10, 0.5), (50, 10, 2.0)]
    for steps, iterations, w in runs:
        latent = case.model.invert(case.photos, num_iterations=iterations, num_steps=steps, guidance=w)
        psnr = -10 * (squared(values(case.model.render(latent)), x) / 4).clamp(min=1e-10).log10()
        is_bar = (steps, iterations, w) == (50, 10, 0.0)
        rows.append(Measured(name=f"invert: {steps} steps, {iterations} iterations, w = {w:g}",
                             figure=float(psnr.mean()), unit=f"dB ± {error(psnr):.2g}", target="40 dB" if is_bar else None,
                             holds=float(psnr.mean()) >= 40 if is_bar else None))  # fmt: skip
    return rows


def interpolated(case: Case) -> list[Measured]:
    """Interpolation: whether similarity to the first picture falls from step to step, and the middle against a blend of pixels."""
    ends = list(zip(case.photos[::2], case.photos[1::2], strict=False))
    falls, middles = [], []
    for a, b in ends:
        morph = case.model.interpolate(a, b, num=7, num_steps=case.num_steps)
        to_a, to_b = F.cosine_similarity(case.pooled(morph)[:, None], case.pooled([a, b])[None], dim=-1).T
        falls.append(spearmanr(range(7), (to_b - to_a).numpy()).statistic)
        middles.append(morph[3])
    each = torch.tensor(falls)
    blends = [Image.blend(a, b, 0.5) for a, b in ends]
    ours, theirs = case.distance(middles), case.distance(blends)
    return [
        Measured(name=f"interpolate: Spearman over {len(ends)} pairs", figure=float(each.mean()), unit=f"± {error(each):.2g}",
                 target="0.9", holds=float(each.mean()) >= 0.9),
        Measured(name="interpolate: Fréchet distance of the middle", figure=ours, unit="", target="below the blend's",
                 holds=ours < theirs, peer=f"blend of pixels {theirs:.4g}"),
    ]  # fmt: skip


def as_pictures(x: Tensor) -> list[Image.Image]:
    """x in [-1, 1] as pictures."""
    array = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one) for one in array]


PARTS = {"edit": edits, "refine": refined, "inpaint": inpainted, "invert": inverted, "interpolate": interpolated}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--num", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=24)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    case = Case.of(arguments.run, arguments.num, arguments.num_steps)
    for name in arguments.only:
        record("editing", PARTS[name](case), is_part=True)


if __name__ == "__main__":
    main()

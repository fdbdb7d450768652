"""The results of benchmarks.orderings as a table for people and as rows for benchmarks/results/. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.record import Measured
from benchmarks.variants import FINAL, FRECHET, ORDERINGS, SIMILARITY, VARIANTS, address
from benchmarks.verdicts import NOT_RUN, Figures, Gain, Place, judged, mean_figure, ranks_alike

Results = Mapping[tuple[str, int], Mapping[str, Any]]


def curve_address(when: str | int) -> str:
    """Where the figure stands that is measured on the way too."""
    return address(when, "pictures", "held_out", 0, FRECHET)


def steps_measured(figures: Figures) -> list[int]:
    """The steps before the end at which the variants were measured."""
    return sorted({int(where.split("/")[0]) for of in figures.values() for where in of if not where.startswith(f"{FINAL}/")})


def measured_rows(figures: Figures, results: Results) -> list[Measured]:
    """A row for each ordering, then for each variant's cost and figures."""
    rows = []
    for ordering, gain, verdict in judged(figures, ORDERINGS):
        if gain is None:
            continue
        holds = {"holds": True, "does not hold": False}.get(verdict)
        unit = f"gain in {ordering.comparison.better.address.split('/')[-1]}: {gain.written}; {verdict}"
        rows.append(Measured(name=ordering.key, figure=gain.value, unit=unit, target="> 0 by 2 standard errors", holds=holds))
    for variant in _variants(results):
        cost = _first(results, variant)["cost"]
        rows.append(Measured(name=f"{variant}: cost", figure=cost["gflop_an_image"], unit="GFLOP a training image"))
        for where in dict.fromkeys(where for (name, _), of in figures.items() if name == variant for where in of):
            found = mean_figure(figures, Place(variant, where))
            assert found is not None
            value, error, num = found
            scatter = "" if error is None else f", ± {error:.3g}"
            rows.append(Measured(name=f"{variant}: {where}", figure=value, unit=f"mean of {num} seeds{scatter}"))
    for step, alike in _early(figures):
        rows.append(Measured(name=f"ranking at step {step} against the last", figure=alike, unit="Kendall's tau, means over seeds"))
    return rows


def written(figures: Figures, results: Results) -> str:
    """The tables in Markdown: protocol, orderings, variants."""
    return "\n".join([*_protocol(results), "", *_orderings(figures), "", *_variant_table(figures, results), "", *_ranking(figures)])


def _variants(results: Results) -> list[str]:
    return [name for name in VARIANTS if any(variant == name for variant, _ in results)]


def _first(results: Results, variant: str) -> Mapping[str, Any]:
    return next(values for (name, _), values in sorted(results.items()) if name == variant)


def _protocol(results: Results) -> Iterator[str]:
    some = next(iter(results.values()))
    settings, seeds = some["settings"], sorted({seed for _, seed in results})
    yield (
        f"Preset {settings['preset']}, {settings['budget']} steps, {some['cost']['images_seen']} pictures seen by every variant, "
        f"training seeds {', '.join(map(str, seeds))}. Fréchet distances in the features of {some['encoder']}, EMA weights, "
        f"{settings['sampling_steps']} DDPM steps, noise of one sampling seed, perceptual net {settings['perceptual']}. "
        "Small n: figures compare within this page only."
    )
    yield ""
    yield "| evaluation set | conditioning images | reference | pages |"
    yield "|---|---|---|---|"
    for name, (conditions, reference, classes) in some["sizes"].items():
        yield f"| {name} | {conditions} | {reference} | {classes} |"


def _orderings(figures: Figures) -> Iterator[str]:
    yield "| ordering | gain | verdict | |"
    yield "|---|---|---|---|"
    for ordering, gain, verdict in judged(figures, ORDERINGS):
        note = ordering.caveat
        if verdict == NOT_RUN:
            sides = " and ".join(dict.fromkeys((ordering.comparison.better.variant, ordering.comparison.worse.variant)))
            note = f"needs {ordering.needs or 'trainings of ' + sides}"
        yield f"| {ordering.claim} | {_shown(gain)} | **{verdict}** | {note} |"


def _shown(gain: Gain | None) -> str:
    return "" if gain is None else gain.written


def _variant_table(figures: Figures, results: Results) -> Iterator[str]:
    steps = steps_measured(figures)
    columns = [*(f"step {step}" for step in steps), "end"]
    yield f"| variant | GFLOP an image | {' | '.join(columns)} | other cells at the end |"
    yield "|---|---|" + "---|" * (len(steps) + 2)
    for variant in _variants(results):
        curve = [_mean(figures, variant, curve_address(when)) for when in [*map(str, steps), FINAL]]
        cost = _first(results, variant)["cost"]
        others = "; ".join(f"{text} {_mean(figures, variant, where)}" for text, where in _other_cells(variant, figures))
        yield f"| {variant} | {cost['gflop_an_image']:.3g} | {' | '.join(curve)} | {others} |"


def _mean(figures: Figures, variant: str, where: str) -> str:
    found = mean_figure(figures, Place(variant, where))
    if found is None:
        return ""
    value, error, _ = found
    return f"{value:.3g}" + ("" if error is None else f" ± {error:.2g}")


def _other_cells(variant: str, figures: Figures) -> Iterator[tuple[str, str]]:
    there = {where for (name, _), of in figures.items() if name == variant for where in of}
    for kind, data, w in VARIANTS[variant].cells:
        for metric in (FRECHET, SIMILARITY):
            where = address(FINAL, kind, data, w, metric)
            if where in there and where != curve_address(FINAL):
                yield (f"{metric}, {kind} of {data}" + ("" if kind == "copy" else f", w = {w:g}"), where)


def _early(figures: Figures) -> Iterator[tuple[int, float]]:
    last = _ranked(figures, FINAL)
    for step in steps_measured(figures):
        early = _ranked(figures, step)
        if len(early.keys() & last.keys()) > 1:
            yield step, ranks_alike(early, last)


def _ranked(figures: Figures, when: str | int) -> dict[str, float]:
    where = curve_address(when)
    found = {name: mean_figure(figures, Place(name, where)) for name in dict.fromkeys(name for name, _ in figures)}
    return {name: of[0] for name, of in found.items() if of is not None}


def _ranking(figures: Figures) -> Sequence[str]:
    told = [f"step {step}: {alike:.2f}" for step, alike in _early(figures)]
    return [f"Kendall's tau of the ranking of variants against that at the end, by {'; '.join(told)}."] if told else []

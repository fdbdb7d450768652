"""A plan as text tables, which `semantica plan` prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from semantica.planning.pairs import Estimate
from semantica.planning.plan import Plan, Way
from semantica.planning.sizes import count, hours, size


@dataclass(frozen=True)
class TextTable:
    """One table. Every row has as many cells as the head."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def show(plan: Plan, console: Console) -> None:
    """Print the tables, and below them the warnings."""
    for shown in tables(plan):
        table = Table(*shown.head, title=shown.title, title_justify="left", show_header=any(shown.head))
        for row in shown.rows:
            table.add_row(*row)
        console.print(table)
    for warning in plan.warnings:
        console.print(f"does not fit: {warning}", markup=False, highlight=False, soft_wrap=True)


def tables(plan: Plan) -> list[TextTable]:
    """All tables, in the order in which they are printed."""
    return [_model(plan), _memory(plan), _stages(plan), _ways(plan), *([_pairs(plan)] if plan.pairs else [])]


def _model(plan: Plan) -> TextTable:
    costs = plan.denoiser
    again = f", and {count(costs.recomputed_flops)}FLOP recomputed" if costs.recomputed_flops else ""
    rows = (
        ("denoiser, parameters", count(costs.num_parameters)),
        ("training, one picture", f"{count(costs.training_flops)}FLOP forward and backward{again}"),
        ("drawing, one step of one picture", f"{count(costs.forward_flops)}FLOP, with guidance twice as much"),
        ("encoder, parameters", f"about {count(plan.encoder.num_parameters)}"),
        ("encoding, one picture", f"{count(plan.encoder_flops)}FLOP"),
    )
    return TextTable("What is computed", ("", ""), rows)


def _memory(plan: Plan) -> TextTable:
    memory, state = plan.memory, plan.memory.state
    rows = [
        ("weights", size(state.weights)),
        ("gradients", size(state.gradients)),
        ("optimizer (two moments)", size(state.moments)),
        ("EMA", size(state.ema)),
        ("gathered from other workers", size(state.gathered)),
        (f"activations, {memory.rows} pictures at once", size(memory.working)),
        ("batches, the current and those ahead", size(memory.batches)),
        (f"total, of {size(plan.config.device_gb * 1e9)}", size(memory.total)),
    ]
    nonzero = tuple(row for row in rows if row[1] != size(0))
    return TextTable(f"Memory of a training device, one of {plan.config.num_devices}", ("", ""), nonzero)


def _stages(plan: Plan) -> TextTable:
    money = any(stage.cost for stage in plan.stages) or plan.storage_cost
    head = ("stage", "stored", "reads", "works", "takes", "limit", *(("cost",) if money else ()))
    rows = []
    for stage in plan.stages:
        reads = f"{size(stage.reads_s)}/s" if stage.reads else "little"
        works = f"{stage.unit_hours:,.1f} {stage.on} h"
        cost = (f"{stage.cost:,.0f}",) if money else ()
        rows.append((stage.name, size(stage.stored), reads, works, hours(stage.hours), stage.limit, *cost))
    total = size(sum(stage.stored for stage in plan.stages))
    if money:
        rows.append(("files, requests", "", "", "", "", "", f"{plan.storage_cost + plan.request_cost:,.0f}"))
    last = ("all", total, "", "", hours(plan.hours), "", *((f"{plan.cost:,.0f}",) if money else ()))
    kind = "measured on a sample" if plan.corpus.measured else "estimated"
    pictures = (
        f"{round(plan.corpus.num_images):,} pictures, {kind}; {plan.config.num_devices} devices, {plan.config.num_cpus} cores"
    )
    return TextTable(pictures, head, (*rows, last))


def _ways(plan: Plan) -> TextTable:
    stored, fly = plan.precomputed, plan.on_the_fly

    def row(name: str, show: Callable[[Way], str]) -> tuple[str, str, str]:
        return name, show(stored), show(fly)

    share = fly.hours / stored.hours - 1
    rows = (
        row("all datasets", lambda way: size(way.stored)),
        row("training reads", lambda way: f"{size(way.reads_s)}/s"),
        row("training speed", lambda way: f"{way.images_s:,.0f} images/s"),
        ("training takes", hours(stored.hours), f"{hours(fly.hours)} ({share:+.1%})"),
    )
    return TextTable("Two ways to condition", ("", "tokens precomputed", "encoded on the fly"), rows)


def _pairs(plan: Plan) -> TextTable:
    assert plan.pairs is not None
    pairs = plan.pairs
    rows = (
        ("pairs in the band", _with_error(pairs.pairs)),
        ("target pictures", _with_error(pairs.targets)),
        ("draws per target", f"{plan.epochs:,.2f} in the whole training"),
    )
    return TextTable(f"Pairs expected, from {pairs.num_pages:,} pages with {pairs.num_images:,} pictures", ("", ""), rows)


def _with_error(estimate: Estimate) -> str:
    return f"{count(estimate.number)} ± {count(estimate.se)} (standard error)"

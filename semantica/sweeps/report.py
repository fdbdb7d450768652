"""The report of a sweep: sweep.html with the three panels of Fig. 2, a table of the trials, and the winner's configuration.

In: the files of the trials. Out: sweep.html for people, sweep.json for programs, and best.yaml, which `semantica train --config`
takes.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from semantica.config import to_yaml
from semantica.data.dataset import read_manifest
from semantica.data.durable import write_atomically
from semantica.data.location import location
from semantica.report.charts import Curve, StepPoint, frechet_by_step
from semantica.report.page import Figure, Grid, Report, Table, render, to_json
from semantica.report.written import Protocol, Value
from semantica.sweeps.points import HeldOut
from semantica.sweeps.ranking import rank_correlations, share_of_grid, winner
from semantica.sweeps.results import Result, figure_path, read_results, selection_folder, trial_folder
from semantica.sweeps.settings import SweepConfig
from semantica.sweeps.space import Setting, Swept, trial_config
from semantica.tracking import git_commit

PAGE, REPORT, BEST, HELD_OUT_FILE = "sweep.html", "sweep.json", "best.yaml", "held_out.json"
_SHOWN = 1  # best trials whose samples the page shows; MLflow has the samples of all trials


@dataclass(frozen=True)
class Panel:
    """A panel of Fig. 2: its title, and the settings whose values make its lines."""

    title: str
    settings: tuple[str, ...]


PANELS = (
    Panel("Encoder × conditioning", ("encoder", "conditioning")),
    Panel("Band", ("band_low", "band_high")),
    Panel("Patching × learning rate", ("patching", "learning_rate")),
)


def write_report(out: Path, config: SweepConfig, swept: Swept, encodings: Mapping[str, str], command: str = "") -> dict[str, float]:
    """Write the three files into `out`. Returns further figures for MLflow's parent run.

    swept: the base of the winner's configuration. At least one trial must have finished.
    """
    results = read_results(out)
    best = winner(results)
    assert best is not None
    encoder = str(best.settings["encoder"])
    identity = read_manifest(location(encodings[encoder]), "encodings").facts["encoder"]
    chosen = trial_config(swept, best.settings, identity)
    text = best_yaml(chosen, encodings[encoder], selection_folder(out, encoder, chosen.band), best)
    write_atomically(out / BEST, text.encode())
    report = sweep_report(out, results, best, config, swept, text, command)
    write_atomically(out / PAGE, render(report).encode())
    write_atomically(out / REPORT, json.dumps(to_json(report), indent=1).encode())
    return {"share_of_grid": share_of_grid(results)}


def best_yaml(chosen: Swept, encodings: str, selection: Path, best: Result) -> str:
    """The winner's training as `semantica train --config FILE --out OUT` takes it."""
    head = f"# {best.name}: Frechet distance {best.final:.4g}.  semantica train --config best.yaml --out OUT\n"
    places = json.dumps({"encodings": encodings})[1:-1], json.dumps({"selection": str(selection)})[1:-1]
    lines = [line.replace('"', "", 2) for line in places]  # keys without quotes; YAML reads the paths in JSON's quotes
    body = "".join(f"  {line}\n" for line in to_yaml(chosen.train).splitlines())
    return head + "\n".join(lines) + "\ntrain:\n" + body


def sweep_report(
    out: Path, results: Sequence[Result], best: Result, config: SweepConfig, swept: Swept, best_text: str, command: str
) -> Report:
    """The whole report."""
    held_out = HeldOut.read(out / HELD_OUT_FILE)
    protocol = _protocol(config, swept, held_out)
    name = f"{held_out.extractor['figure']}, n = {len(held_out.conditions)}"
    finished = [result for result in results if result.status == "finished"]
    figures = [
        Figure(name="best_frechet", value=best.final, explanation=f"of {best.name}, the lowest of all", protocol=protocol),
        Figure(name="num_trials", value=len(results), explanation=_how_ended(results)),
        Figure(
            name="share_of_grid",
            value=share_of_grid(results),
            explanation="training FLOPs spent, as a share of those of all these trials trained to the end",
        ),
    ]
    ordered = sorted(results, key=lambda r: (r.status != "finished", r.final if r.final is not None else float("inf"), -r.reached))
    return Report(
        title="Sweep",
        summary=[
            f"The best of {len(results)} trials is {best.name}: {name} is {best.final:.4g}.",
            f"{_how_ended(results)}; {share_of_grid(results):.0%} of the FLOPs of all of them trained to the end were spent.",
            "The figure is a Fréchet distance and not the validation loss, which does not compare across bands.",
        ],
        figures=figures,
        grids=[_samples(out, result, protocol) for result in ordered[:_SHOWN] if result.reached],
        curves=[panel_curve(panel, results, best, name, protocol) for panel in PANELS],
        tables=[_table(ordered, protocol), *_ranks(finished)],
        protocol={"search": config.search, "stopping": config.stopping, "points": config.measure.num_points},
        config_yaml=best_text,
        versions={"python": platform.python_version(), **{name: version(name) for name in ("ray", "torch", "optuna", "mlflow")}},
        commit=git_commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=command,
    )


def _protocol(config: SweepConfig, swept: Swept, held_out: HeldOut) -> Protocol:
    measure = config.measure
    return Protocol(
        data="held-out pictures",
        resolution_px=swept.train.denoiser.resolution_px,
        num_samples=len(held_out.conditions),
        num_reference=held_out.num_reference,
        extractor=f"{held_out.extractor['name']} ({held_out.extractor['title']})",
        resize=str(held_out.extractor["resize"]),
        num_steps=measure.sampler.num_steps,
        guidance=measure.guidance,
        ema=True,
        seeds=(measure.seed,),
        more=f"{swept.train.num_steps} training steps of {swept.train.batch_size} pairs, training seed {swept.train.seed}",
    )


def _how_ended(results: Sequence[Result]) -> str:
    words = {"finished": "came to the end", "stopped": "were stopped early", "diverged": "diverged", "failed": "found no pairs"}
    counts = {status: sum(r.status == status for r in results) for status in words}
    return ", ".join(f"{number} {words[status]}" for status, number in counts.items() if number)


def line_name(panel: Panel, settings: Mapping[str, Setting]) -> str:
    """The name of a line of a panel: the values of its settings."""
    if "band_low" in panel.settings:
        return f"{settings['band_low']:g} to {settings['band_high']:g}"
    return ", ".join(f"lr {settings[s]:.4g}" if s == "learning_rate" else str(settings[s]) for s in panel.settings)


def lines_of(panel: Panel, results: Sequence[Result], best: Result) -> dict[str, Result]:
    """For each value of the panel's settings, the trial that shares most other settings with the best trial.

    Among equals, the trial that reached the latest point, then the one with the lowest figure.
    """
    lines: dict[str, Result] = {}
    for name in dict.fromkeys(line_name(panel, result.settings) for result in results):
        candidates = [r for r in results if line_name(panel, r.settings) == name and r.figures]
        if candidates:
            lines[name] = min(candidates, key=lambda r: (len(_others(panel, r, best)), -r.reached, r.figures[-1].frechet, r.index))
    return lines


def _others(panel: Panel, result: Result, best: Result) -> list[str]:
    """The settings, beside the panel's own, in which a trial differs from the best one."""
    return [s for s, value in result.settings.items() if s not in panel.settings and value != best.settings[s]]


def panel_curve(panel: Panel, results: Sequence[Result], best: Result, name: str, protocol: Protocol) -> Curve:
    """A panel of Fig. 2. Its caption says when fewer than two values were tried."""
    lines = lines_of(panel, results, best)
    differing = {line: _others(panel, result, best) for line, result in lines.items()}
    marked = {line: f"{line} *" if differing[line] else line for line in lines}
    series = {marked[line]: [StepPoint(step=f.step, frechet=f.frechet) for f in result.figures] for line, result in lines.items()}
    curve = frechet_by_step(series, frechet_name=name, protocol=protocol, title=panel.title)
    says = ["As Fig. 2 of the paper: lower is nearer to real pictures. A line ends where its trial was stopped."]
    if len(lines) < 2:
        says.append(f"Nothing is compared here: only {next(iter(lines))} has figures.")
    else:
        says.append("One trial per line; its other settings are the best trial's.")
    if any(differing.values()):
        says.append(
            "*: no trial had the best trial's other settings; this one differs in "
            + "; ".join(_differences(marked, differing))
            + "."
        )
    values = [point.frechet for points in series.values() for point in points]
    return replace(curve, caption=" ".join(says), log_y=min(values) > 0 and max(values) > 5 * min(values))


def _differences(marked: Mapping[str, str], differing: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{', '.join(names)} ({marked[line]})" for line, names in differing.items() if names]


def _table(results: Sequence[Result], protocol: Protocol) -> Table:
    columns = ["trial", "encoder", "conditioning", "patching", "learning rate", "low", "high", "status"]
    columns += ["points", "final FD", "last FD", "GFLOP/step", "train s", "measure s"]
    rows: list[list[Value]] = []
    for result in results:
        s = result.settings
        last = max(result.figures, key=lambda figure: figure.point, default=None)
        seconds = [figure.seconds for figure in result.figures if figure.seconds is not None]
        whole = len(seconds) == len(result.figures)
        rows.append(
            [
                f"{result.index:03d}",
                s["encoder"],
                s["conditioning"],
                s["patching"],
                s["learning_rate"],
                s["band_low"],
                s["band_high"],
                result.status,
                f"{result.reached}/{len(result.steps)}",
                result.final,
                last.frechet if last else None,
                result.flops / 1e9,
                round(sum(seconds), 1) if whole and seconds else None,
                round(sum(figure.measuring_seconds for figure in result.figures), 1) if result.figures else None,
            ]
        )
    caption = "Finished trials first, the lowest figure first. MLflow sorts and plots the same columns by other keys."
    missing = "no final FD: the trial ended before its last point; no train s: it was restarted between two points"
    return Table(title="Trials", columns=columns, rows=rows, caption=caption, protocol=protocol, missing=missing)


def _ranks(finished: Sequence[Result]) -> list[Table]:
    whole = [r for r in finished if len(r.figures) == len(r.steps)]
    correlations = rank_correlations([[figure.frechet for figure in result.figures] for result in whole])
    if not correlations:
        return []
    steps = whole[0].steps
    rows: list[list[Value]] = [
        [f"{i}/{len(steps)}", steps[i - 1], rho if rho == rho else None] for i, rho in enumerate(correlations, 1)
    ]
    caption = (
        f"Spearman's rank correlation between the figures at each point and the final ones, over the {len(whole)} finished trials. "
        "Early stopping relies on a high correlation. Trials that were stopped early, the worst ones, are not included."
    )
    return [
        Table(
            title="Do early figures rank the final ones?", columns=["point", "step", "rank correlation"], rows=rows, caption=caption
        )
    ]


def _samples(out: Path, result: Result, protocol: Protocol) -> Grid:
    path = figure_path(trial_folder(out, result.name), result.reached).with_suffix(".png")
    step = result.steps[result.reached - 1]
    return Grid(
        title=f"{result.name}, step {step}",
        png=path.read_bytes(),
        alt=f"rows of a held-out conditioning image and a sample of trial {result.name} at step {step}",
        caption="Left: a held-out conditioning image. Right: a sample of the EMA weights. Conditions and noise are fixed.",
        protocol=protocol,
    )

"""The format of every benchmark's result: a list of {name, figure, unit, target, holds, peer, machine, commit, date, command}."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from semantica.tracking import git_commit

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One figure. target: what it should be, as text, or None; holds: whether it is; peer: what it is compared with, or None."""

    name: str
    figure: float
    unit: str
    target: str | None = None
    holds: bool | None = None
    peer: str | None = None


def machine() -> str:
    """The processor, its cores and the memory, in words."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{model}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {gpu}"


def record(module: str, measured: Sequence[Measured], *, is_part: bool = False) -> Path:
    """Print the table and write it to results/. Returns the file's path. is_part: figures of other names are left as they are."""
    table = Table("figure", "value", "unit", "target", "holds", "against")
    for m in measured:
        table.add_row(
            m.name, f"{m.figure:.4g}", m.unit, m.target or "", {None: "", True: "yes", False: "NO"}[m.holds], m.peer or ""
        )
    Console().print(table)
    common = {
        "machine": machine(),
        "commit": git_commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]]),
    }
    RESULTS.mkdir(exist_ok=True)
    # A run on a GPU does not replace what was measured on a CPU.
    path = RESULTS / f"{module}{'-gpu' if torch.cuda.is_available() else ''}.json"
    rows = [{**asdict(m), **common} for m in measured]
    if is_part and path.exists():
        new = {m.name for m in measured}
        rows = [row for row in json.loads(path.read_text()) if row["name"] not in new] + rows
    path.write_text(json.dumps(rows, indent=1) + "\n")
    return path

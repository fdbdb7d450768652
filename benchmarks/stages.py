"""python -m benchmarks.stages: the time of each stage of the demo, end to end, in a folder of its own.

--out DIR keeps the run, or reads the times of one that is there; downloads come from the cache when they are in it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import Measured, record
from semantica.config import take_flag
from semantica.data.dataset import TIMING
from semantica.distributed.quickstart import obtain, quickstart
from semantica.distributed.runtime import Runtime
from semantica.presets import tiny

_STAGES = {
    "ingest": "episodes", "encode": "encodings", "score": "scores", "pairs": "selection", "train": "checkpoint",
    "generate": "samples", "evaluate": "evaluation",
}  # fmt: skip
_TARGET_SECONDS = 480


def main() -> None:
    """Run the demo and record the seconds of each stage and of the whole."""
    _, given = take_flag(sys.argv[1:], "--out")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(given or scratch) / "demo"
        started = time.monotonic()
        obtain("clip-art")
        obtained = time.monotonic() - started
        quickstart(tiny(), source="clip-art", root=None, out=out, runtime=Runtime(), command="benchmarks.stages")
        total = time.monotonic() - started
        seconds = {name: json.loads((out / folder / TIMING).read_text())["seconds"] for name, folder in _STAGES.items()}
        history = json.loads((out / "checkpoint" / "history.json").read_text())
    rates = sorted(h["images_per_second"] for h in history)
    measured = [Measured(name="obtain", figure=obtained, unit="s")]
    measured += [Measured(name=name, figure=value, unit="s") for name, value in seconds.items()]
    measured += [
        Measured(name="demo, all of it", figure=total, unit="s", target=f"<= {_TARGET_SECONDS} s", holds=total <= _TARGET_SECONDS),
        Measured(name="training, median", figure=rates[len(rates) // 2], unit="images/s"),
    ]
    print(record("stages", measured))


if __name__ == "__main__":
    main()

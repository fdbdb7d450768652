"""python -m benchmarks.tracking: what recording costs a training: to SQLite (the default), a server, one that is down, a slow one.

A step is that of `benchmarks.train_step` (tiny, 1 thread), with 40 figures recorded after every step, or after every 10th as the
recipe of `make demo` has it (others: every 100th), and a picture after every 20th. All is in one process, the sender too, which in
a training is in another one than the steps: so every figure is an upper bound. Rounds are interleaved; the figure is the median
over rounds of the ratio of their seconds, by the clock, since waiting is what is looked for. Down is a port where nobody listens;
slow answers after two seconds, and then that it is busy.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
import tyro

from benchmarks.measure import Settings
from benchmarks.peers import OURS, contenders, denoiser_config
from benchmarks.record import Measured, record
from benchmarks.train_step import Training, Way
from semantica.tracking import Place, Run, TrackingConfig, start_run

_STEPS, _MOST = 20, 1.05
_PACES = (1, 10)  # steps between two reports
_FIGURES = {f"loss_logsnr_{n}": 0.1 * n for n in range(40)}
_PICTURE = bytes(50_000)


class _Slow(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Answer late, and with no more than an excuse."""
        time.sleep(2.0)
        self.send_error(503)

    do_GET = do_POST

    def log_message(self, *words: object) -> None:
        """Nothing."""


def free_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def mlflow_server(folder: Path, stack: ExitStack) -> str:
    """The URI of a server of one worker, which ends with the stack."""
    port = free_port()
    words = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, start_new_session=True, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}, **quiet)
    stack.callback(os.killpg, process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
        except OSError:
            time.sleep(0.2)
        else:
            return f"http://127.0.0.1:{port}"
    raise TimeoutError("the MLflow server did not start")


@dataclass
class Round:
    """Seconds of each step, and of each call that records, in one round."""

    steps: list[float]
    calls: list[float]


def one_round(training: Training, run: Run, first: int, every: int) -> Round:
    """Steps, each or every so many of them recorded."""
    taken = Round([], [])
    for step in range(first, first + _STEPS):
        started = time.perf_counter()
        training()
        computed = time.perf_counter()
        if step % every == 0:
            run.metrics(_FIGURES, step=step)
        if step % 20 == 0:
            run.image(_PICTURE, f"samples-{step}")
        ended = time.perf_counter()
        taken.steps.append(ended - started)
        if step % every == 0:
            taken.calls.append(ended - computed)
    return taken


def main() -> None:
    """Measure and record."""
    settings = tyro.cli(Settings)
    torch.set_num_threads(1)
    shape, batch = denoiser_config("tiny"), settings.batch or 8
    training = Training(contenders(shape, only=OURS)[OURS](), Way(OURS, settings.compute()), shape, batch, "cpu")
    training()
    logging.getLogger("semantica").setLevel(logging.CRITICAL)  # that two servers do not answer is no news
    rounds: dict[tuple[str, int], list[Round]] = defaultdict(list)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        slow = ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
        threading.Thread(target=slow.serve_forever, daemon=True).start()
        uris = {
            "off": "off",
            "SQLite": f"sqlite:///{folder}/mlflow.db",
            "a server": mlflow_server(folder, stack),
            "a server that is down": f"http://127.0.0.1:{free_port()}",
            "a slow server": f"http://127.0.0.1:{slow.server_address[1]}",
        }
        runs = {}
        for index, (name, uri) in enumerate(uris.items()):
            place, tracking = Place(folder / f"spool-{index}"), TrackingConfig(flush_s=0.1)
            runs[name] = stack.enter_context(start_run(uri, "benchmark", name, place=place, tracking=tracking))
        runs["SQLite"].flush(120)
        ends, first = time.monotonic() + settings.seconds, 0
        while time.monotonic() < ends or len(rounds["off", 1]) < 5:
            for every in _PACES:
                for name, run in runs.items():
                    rounds[name, every].append(one_round(training, run, first, every))
                    if name in ("SQLite", "a server"):
                        run.flush(60)  # or the next one would pay for it
                first += _STEPS
    off = [statistics.mean(r.steps) for every in _PACES for r in rounds["off", every]]
    measured = [
        Measured(name=f"step (tiny, batch {batch}, 1 thread), tracking off", figure=1e3 * statistics.median(off), unit="ms")
    ]
    for name, every in [key for key in rounds if key[0] != "off"]:
        pairs = zip(rounds[name, every], rounds["off", every], strict=True)
        ratio = statistics.median(statistics.mean(mine.steps) / statistics.mean(without.steps) for mine, without in pairs)
        calls = sorted(call for r in rounds[name, every] for call in r.calls)
        target = f"<= {_MOST}"
        pace = "every step" if every == 1 else f"every {every} steps"
        of = f"{name}, {pace}"
        measured += [
            Measured(name=f"{of}: step", figure=ratio, unit="x", target=target, holds=ratio <= _MOST, peer="tracking off"),
            Measured(name=f"{of}: to record 40 figures, median", figure=1e3 * statistics.median(calls), unit="ms"),
            Measured(name=f"{of}: to record 40 figures, longest of {len(calls)}", figure=1e3 * calls[-1], unit="ms"),
        ]
    print(record("tracking", measured))


if __name__ == "__main__":
    main()

"""Ray workers that start in a moment: each is forked from a process that has imported torch, Ray and semantica.

A worker of Ray is a new Python that imports Ray twice and then torch, five seconds of a core, and one training of six steps has ten
of them. Here the raylet gets another command for its workers, a `python` that sends its words, its environment and its outputs to a
server and stays until the worker ends. Everything after the imports is Ray's own worker code. The tests that are marked slow run
without it.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CLIENT = "SEMANTICA_TEST_WARM_PYTHON"  # in the environment: the path of the other `python`
JOB = "01000000"  # the first job of a Ray, all that a local one has; Ray reads its number when it is imported, once
MODULES = (
    "ray._private.workers.setup_worker", "ray.data", "ray.train.torch", "ray.tune", "ray.train.v2._internal.execution.controller",
    "transformers.models.dinov2.modeling_dinov2",
    "semantica.distributed.sweep", "semantica.distributed.trial", "semantica.distributed.pipeline",
    "semantica.distributed.evaluate", "semantica.distributed.measure", "semantica.episodes.ingest",
)  # fmt: skip

# Without the site's packages it starts in 20 ms. An agent of a node, which is no worker, becomes the Python that it would be.
_CLIENT = """\
#!{python} -ISE
import array, ctypes, json, os, signal, socket, sys
words = sys.argv[1:]
if not words or not words[0].endswith("setup_worker.py") or os.environ.get("RAY_JOB_ID") != {job!r}:
    os.execv({python!r}, [{python!r}, *words])
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # when the raylet goes, this goes, and the worker with it
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    said = json.dumps({{"words": words, "env": dict(os.environ), "cwd": os.getcwd()}}).encode()
    server.sendmsg([len(said).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2]))])
    server.sendall(said)
    server.recv(1)
"""


@contextmanager
def warm_workers(folder: Path) -> Iterator[None]:
    """Every Ray that this process or one of its children starts in the block forks its workers from one server."""
    address, client = folder / "server", folder / "python"
    before = {name: os.environ.get(name) for name in (CLIENT, "PYTHONPATH")}
    client.write_text(_CLIENT.format(python=sys.executable, address=str(address), job=JOB))
    client.chmod(0o755)
    here = str(Path(__file__).parent)
    # A process with threads cannot be forked.
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    words = [sys.executable, __file__, str(address)]
    server = subprocess.Popen(words, env={**os.environ, **single}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n", "the server of the workers did not start"
        os.environ[CLIENT] = str(client)
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [before["PYTHONPATH"]])])  # children find sitecustomize.py
        use_warm_workers(importlib.import_module("ray._private.services"))
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        server.communicate(timeout=30)  # the end of its input is the end of the server


def use_warm_workers(services: Any) -> None:
    """Let `ray._private.services` tell its raylets the other `python`, as long as the environment names one."""
    original = services.start_raylet

    def start_raylet(*args: Any, **kwargs: Any) -> Any:
        python = sys.executable
        sys.executable = os.environ.get(CLIENT, python)
        try:
            return original(*args, **kwargs)
        finally:
            sys.executable = python

    services.start_raylet = start_raylet


class Server:
    """Forks a worker per connection. A connection is closed when its worker ends; a worker is killed when its client goes."""

    def __init__(self, address: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen(64)
        self.workers: dict[int, socket.socket] = {}
        self.ended, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self.ended, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        """Until the input ends."""
        while True:
            inputs = [0, self.ended, self.listener, *self.workers.values()]
            for ready in select.select(inputs, [], [])[0]:
                if ready == 0:
                    for process in self.workers:
                        os.kill(process, signal.SIGKILL)
                    return
                if ready == self.ended:
                    self._reap()
                elif ready is self.listener:
                    self._start(self.listener.accept()[0])
                else:
                    for process, client in self.workers.items():
                        if client is ready:
                            os.kill(process, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                os.read(self.ended, 4096)
            except BlockingIOError:
                break
        while self.workers and (process := os.waitpid(-1, os.WNOHANG)[0]):
            self.workers.pop(process).close()

    def _start(self, client: socket.socket) -> None:
        size, ancillary, *_ = client.recvmsg(8, socket.CMSG_LEN(8))
        outputs = list(array.array("i", ancillary[0][2]))
        with client.makefile("rb") as stream:
            said = json.loads(stream.read(int.from_bytes(size, "big")))
        process = os.fork()
        if process == 0:
            run_worker(said, outputs, [self.listener, client, *self.workers.values()])
        for output in outputs:
            os.close(output)
        self.workers[process] = client


def run_worker(said: dict[str, Any], outputs: list[int], others: list[socket.socket]) -> None:
    """In the new process: what setup_worker.py and default_worker.py do. Does not return."""
    os.setpgid(0, 0)  # as the raylet does: it ends what a worker leaves by a signal to the worker's process group
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
        os.close(output)
    for other in others:
        other.close()
    code = 1
    try:
        os.chdir(said["cwd"])
        os.environ.clear()
        os.environ.update(said["env"])
        from ray._private.runtime_env.context import RuntimeEnvContext
        from ray._private.utils import update_envs
        from ray._private.workers.setup_worker import parser
        from ray._raylet import AuthenticationTokenLoader, Config

        Config.initialize("")  # what the server read of its own environment is forgotten
        AuthenticationTokenLoader.instance().reset_cache()
        words, rest = parser.parse_known_args(said["words"][1:])
        context = RuntimeEnvContext.deserialize(words.serialized_runtime_env_context or "{}")
        update_envs(context.env_vars)
        sys.argv, sys.path[0] = rest, str(Path(rest[0]).parent)
        runpy.run_path(rest[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _number_of_child() -> bytes:
    """A random number of Ray, of a new process."""
    reader, writer = os.pipe()
    if (process := os.fork()) == 0:
        os.write(writer, importlib.import_module("ray").ObjectRef.from_random().binary())
        os._exit(0)
    os.waitpid(process, 0)
    number = os.read(reader, 100)
    os.close(reader)
    os.close(writer)
    return number


def main() -> None:
    """The server: import what workers import, say so, serve."""
    os.environ.update({"RAY_JOB_ID": JOB, "RAY_RAYLET_PID": str(os.getpid())})  # read once, when Ray is imported
    actor, identity = importlib.import_module("ray.actor"), importlib.import_module("ray._raylet").ActorClassID
    # Ray's own seeds its generator, and then the tasks of all workers would have the same numbers.
    actor.ActorClassID = SimpleNamespace(from_random=lambda: identity(os.urandom(identity.size())))
    for name in MODULES:
        importlib.import_module(name)
    actor.ActorClassID = identity
    assert _number_of_child() != _number_of_child(), "an import draws a number: workers would draw the same ones"
    assert len(os.listdir("/proc/self/task")) == 1, "an import starts a thread; a process with threads cannot be forked"
    gc.collect()
    gc.freeze()
    server = Server(sys.argv[1])
    os.write(1, b"ready\n")
    os.dup2(2, 1)
    server.serve()
    os._exit(0)  # without a word of libraries that count what is left


if __name__ == "__main__":
    main()

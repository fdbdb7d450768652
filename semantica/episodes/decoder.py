"""Isolated decoding: `images.normalise` in a child process that may die, hang or run out of memory.

`ingest` calls the decoder from `open_decoder` with the bytes of each file, and gets a NormalisedImage or `Refused`, the same as
from `normalise`. With `isolate` (the default), a picture that kills the child or takes too long is refused, and a new child decodes
the next one. This contains accidents. It is not a sandbox: an attacker who takes over the decoder could open a socket.

The child is started by exec, never by fork, which is safe in a worker with threads. It inherits two pipes and no environment.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

from PIL import Image

from semantica.episodes.decoder_child import READY, REPLY, REQUEST
from semantica.episodes.images import ImageConfig, NormalisedImage, check_length, normalise
from semantica.episodes.quarantine import Reason, Refused

COMMAND = (sys.executable, "-P", "-m", "semantica.episodes.decoder_child")  # -P: do not import from the current folder

_START_SECONDS = 120.0  # a child imports numpy and Pillow in 0.3 s, but from a busy network disk it may take long
_PICTURES_PER_CHILD = 20_000  # then a new child starts, so that leaks of a library do not add up for days
_PIPE_BYTES = 2**20  # one write for most files, one read for every reply; the default of Linux is 64 KiB
_MAX_TEXT_BYTES = 2**20
# By default glibc returns freed memory to the kernel after each picture, and page faults follow at the next: 3 ms of 19 for a JPEG
# of 800x600. With these settings it keeps up to 64 MiB.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**26)}
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")


@runtime_checkable
class PictureDecoder(Protocol):
    """data -> NormalisedImage, or raises Refused. Must be closed, by `with` or `close`."""

    def __call__(self, data: bytes) -> NormalisedImage: ...

    def close(self) -> None: ...

    def __enter__(self) -> PictureDecoder: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_decoder(settings: ImageConfig) -> PictureDecoder:
    """The decoder for these settings: in a child process (`isolate`) or in this one."""
    return Decoder(settings) if settings.isolate else InProcessDecoder(settings)


class InProcessDecoder:
    """`images.normalise` in this process, which dies or hangs when a decoder does.

    libtiff prints warnings about damaged files to stderr, which belongs to the whole process; those of Pillow are silenced.
    """

    def __init__(self, settings: ImageConfig) -> None:
        self._settings = settings
        logging.getLogger("PIL").setLevel(logging.CRITICAL)  # the quarantine row says what is wrong with a picture

    def __call__(self, data: bytes) -> NormalisedImage:
        """The picture. Raises Refused."""
        return normalise(data, self._settings)

    def close(self) -> None:
        """Nothing to do."""

    def __enter__(self) -> InProcessDecoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Decoder:
    """`images.normalise` in one child at a time, started with the first picture. Threads may share a Decoder; they take turns.

    The result for a picture depends on this picture alone: when a child that has decoded others dies or runs out of memory, the
    picture is tried once more in a fresh child. So no picture is refused for a leak, for damage by an earlier picture, or for a
    kill from outside.
    """

    def __init__(self, settings: ImageConfig, command: Sequence[str] = COMMAND) -> None:
        self._settings = settings
        self._command = (*command, json.dumps(asdict(settings)))
        self._child: _Child | None = None
        self._lock = threading.Lock()
        self.num_started = 0  # children

    def __call__(self, data: bytes) -> NormalisedImage:
        """The picture. Raises Refused, as `normalise` does, and for DECODER_DIED, DECODER_TIMEOUT and DECODER_MEMORY."""
        check_length(data, self._settings)
        with self._lock:
            if self._child is not None and self._child.num_pictures:
                try:
                    return self._ask(self._child, data)
                except Refused as refused:
                    if refused.reason not in {Reason.DECODER_DIED, Reason.DECODER_MEMORY}:
                        raise
            return self._ask(self._get_child(), data)

    @property
    def pid(self) -> int | None:
        """The process id of the child that serves the next picture, if there is one."""
        return None if self._child is None else self._child.pid

    def close(self) -> None:
        """End the child. A further picture starts another."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, child: _Child, data: bytes) -> NormalisedImage:
        is_reusable = False
        try:
            image = child.decode(data, self._settings)
            is_reusable = child.num_pictures < _PICTURES_PER_CHILD
        except Refused as refused:
            is_reusable = refused.reason not in {Reason.DECODER_DIED, Reason.DECODER_TIMEOUT, Reason.DECODER_MEMORY}
            raise
        finally:  # also when Ctrl-C leaves half a message in the pipe
            if not is_reusable:
                self._stop()
        return image

    def _get_child(self) -> _Child:
        if self._child is None:
            self._child = _Child(self._command)
            self.num_started += 1
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


class _Lost(Exception):
    """The child ended, or did not answer in time (`is_late`)."""

    def __init__(self, detail: str, is_late: bool = False) -> None:
        super().__init__(detail)
        self.is_late = is_late


class _Child:
    """One process and the two pipes to it. No call on the pipes blocks beyond its deadline."""

    def __init__(self, command: Sequence[str]) -> None:
        """Raises RuntimeError when the command does not start: the installation is broken, no picture is at fault."""
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, env=_environment()
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        self.pid = self._process.pid
        self.num_pictures = 0
        for pipe in (self._stdin, self._stdout):
            os.set_blocking(pipe, False)
            _widen(pipe)
        try:
            self._read(len(READY), time.monotonic() + _START_SECONDS)
        except _Lost as lost:
            self.kill()
            raise RuntimeError(
                f"the image decoder does not start: {lost}; try: {' '.join(command[:-1])} '{{}}' </dev/null"
            ) from None

    def decode(self, data: bytes, settings: ImageConfig) -> NormalisedImage:
        """The child's result for the file. Raises Refused; after DECODER_DIED and DECODER_TIMEOUT the child must not be used."""
        self.num_pictures += 1
        try:
            return self._exchange(data, settings.image_px, time.monotonic() + settings.decode_timeout_s)
        except _Lost as lost:
            if lost.is_late:
                raise Refused(Reason.DECODER_TIMEOUT, f"expected within {settings.decode_timeout_s:g} s, got no answer") from None
            raise Refused(Reason.DECODER_DIED, f"the decoder died over this picture: {lost}") from None

    def _exchange(self, data: bytes, side: int, deadline: float) -> NormalisedImage:
        self._write(REQUEST.pack(len(data)), deadline)
        self._write(data, deadline)
        is_accepted, width, height, num_bytes = REPLY.unpack(self._read(REPLY.size, deadline))
        if num_bytes > _MAX_TEXT_BYTES + 8 * side * side:  # lossless WebP never takes twice the size of the pixels
            raise _Lost(f"it announced {num_bytes} bytes")
        reply = bytes(self._read(num_bytes, deadline))
        if not is_accepted:
            raise _refusal(reply)
        pixels = self._read(3 * side * side, deadline)
        return NormalisedImage(reply, Image.frombytes("RGB", (side, side), pixels), width, height)

    def kill(self) -> None:
        """Kill the process; it has no state to save."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _write(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._stdin, rest) :]
            except BlockingIOError:
                self._wait(self._stdin, select.POLLOUT, deadline)
            except BrokenPipeError:
                raise _Lost(self._ending()) from None

    def _read(self, num_bytes: int, deadline: float) -> bytearray:
        data = bytearray(num_bytes)
        rest = memoryview(data)
        while rest:
            try:
                got = os.readv(self._stdout, [rest])
            except BlockingIOError:
                self._wait(self._stdout, select.POLLIN, deadline)
                continue
            if not got:
                raise _Lost(self._ending())
            rest = rest[got:]
        return data

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        """Wait until the pipe is usable or broken. Uses poll: select refuses file numbers above 1023, which busy workers have."""
        seconds = deadline - time.monotonic()
        poll = select.poll()
        poll.register(pipe, event)
        if seconds <= 0 or not poll.poll(1000 * seconds):
            raise _Lost("no answer in time", is_late=True)

    def _ending(self) -> str:
        """How the process ended, in words."""
        try:
            code = self._process.wait(timeout=5)  # the pipes close before the process ends, which takes a second on a busy machine
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        if code >= 0:
            return f"exit code {code}"
        return f"signal {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"signal {-code}"


def _refusal(text: bytes) -> Refused:
    """The refusal in a child's reply. Raises _Lost when the reply cannot be read."""
    try:
        reason, detail = json.loads(text)
        return Refused(Reason(reason), str(detail))
    except (ValueError, TypeError) as error:
        raise _Lost(f"its reply cannot be read ({error})") from None


def _environment() -> dict[str, str]:
    """The variables that Python needs to start and to find the same packages as here; no credentials, no other settings."""
    variables = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    folders = [str(Path(__file__).parents[2]), *(os.path.abspath(folder) for folder in sys.path)]
    return {**variables, **_MALLOC, "PYTHONPATH": os.pathsep.join(dict.fromkeys(folders)), "OPENBLAS_NUM_THREADS": "1"}


def _widen(pipe: int) -> None:
    if sys.platform == "linux":
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except PermissionError:  # the user's limit for pipes is reached; this pipe keeps its size and is only slower
            return

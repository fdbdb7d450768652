"""The child process of `decoder`: reads files from stdin and writes the result of `images.normalise` for each to stdout.

Started as `python -m semantica.episodes.decoder_child SETTINGS`, with the ImageConfig as JSON; it ends when stdin ends. A message
is a header and its bytes, never a pickle: the parent trusts no message, since a file may have taken over the decoder.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import warnings
from typing import BinaryIO

from PIL import AvifImagePlugin

from semantica.episodes.images import ImageConfig, NormalisedImage, normalise
from semantica.episodes.quarantine import Refused

REQUEST = struct.Struct("!Q")  # bytes of the file, which follow
# Accepted: original width and height, bytes of the WebP; that WebP and image_px² RGB pixels follow.
# Not accepted: 0, 0, bytes of a JSON list of reason and detail, which follows.
REPLY = struct.Struct("!?III")
READY = b"R"  # sent once, when the child can decode

# The parent kills a decoder that hangs. When the parent is gone, the kernel's alarm ends the child this much later.
_ORPHAN_SECONDS = 5.0


def main() -> None:
    """Serve one parent until it closes stdin."""
    settings = ImageConfig(**json.loads(sys.argv[1]))
    requests, replies = sys.stdin.buffer, take_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; when it ends, stdin ends
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # one decoder runs per CPU of the machine
    limit_resources(settings.decode_memory_mb * 2**20)
    replies.write(READY)
    replies.flush()
    while header := requests.read(REQUEST.size):
        data = requests.read(REQUEST.unpack(header)[0])
        signal.setitimer(signal.ITIMER_REAL, settings.decode_timeout_s + _ORPHAN_SECONDS)
        answer(data, settings, replies)
        signal.setitimer(signal.ITIMER_REAL, 0)


def take_stdout() -> BinaryIO:
    """The pipe of stdout. From now on, output that C libraries print to stdout is discarded."""
    pipe = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return os.fdopen(pipe, "wb")


def answer(data: bytes, settings: ImageConfig, replies: BinaryIO) -> None:
    """Write the reply to one file."""
    try:
        image = normalise(data, settings)
    except Refused as refused:
        text = json.dumps([refused.reason, refused.detail]).encode()  # ASCII, lone surrogates escaped
        replies.write(REPLY.pack(False, 0, 0, len(text)) + text)
    else:
        write_image(image, replies)
    replies.flush()


def write_image(image: NormalisedImage, replies: BinaryIO) -> None:
    """Write the reply for an accepted picture. It includes the pixels, which saves the parent 2 ms of decoding the WebP."""
    replies.write(REPLY.pack(True, image.original_width, image.original_height, len(image.data)))
    replies.write(image.data)
    replies.write(image.pixels.tobytes())


def limit_resources(memory_bytes: int) -> None:
    """Allow `memory_bytes` more private memory than the process has now, and neither core dumps nor written files.

    RLIMIT_DATA counts the memory that malloc gets from the kernel (since Linux 4.7 private writable mappings too), that is, all
    memory that decoders request, touched or not. RLIMIT_AS would also count libraries, and the 64 MiB that glibc reserves per
    thread and never uses. RLIMIT_RSS is not enforced. Other systems than Linux have no such limit.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = data_bytes() + memory_bytes
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def data_bytes() -> int:
    """The bytes of this process that RLIMIT_DATA counts."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))


if __name__ == "__main__":
    main()

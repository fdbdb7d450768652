"""The child of `decoder`: reads files from stdin, writes what `images.normalise` makes of each to stdout, until stdin ends.

Started as `python -m semantica.episodes.decoder_child SETTINGS`, the ImageConfig as JSON. A message is a header and its bytes,
never a pickle: the parent believes nothing that this process says, since a broken decoder may have taken it over.
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

# A decoder that hangs is killed by its parent. Should the parent be gone, the kernel's alarm ends it this much later.
_ORPHAN_SECONDS = 5.0


def main() -> None:
    """Serve one parent until it closes stdin."""
    settings = ImageConfig(**json.loads(sys.argv[1]))
    requests, replies = sys.stdin.buffer, take_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; its end is the end of stdin
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a decoder for every CPU of the machine
    limit_resources(settings.decode_memory_mb * 2**20)
    replies.write(READY)
    replies.flush()
    while header := requests.read(REQUEST.size):
        data = requests.read(REQUEST.unpack(header)[0])
        signal.setitimer(signal.ITIMER_REAL, settings.decode_timeout_s + _ORPHAN_SECONDS)
        answer(data, settings, replies)
        signal.setitimer(signal.ITIMER_REAL, 0)


def take_stdout() -> BinaryIO:
    """The pipe that stdout was; from now on whatever C libraries print there goes nowhere."""
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
    """Write the reply of an accepted picture. Its pixels go along, since decoding the WebP again would take the parent 2 ms."""
    replies.write(REPLY.pack(True, image.original_width, image.original_height, len(image.data)))
    replies.write(image.data)
    replies.write(image.pixels.tobytes())


def limit_resources(memory_bytes: int) -> None:
    """Allow this much more private memory than the process has now, and neither core dumps nor written files.

    RLIMIT_DATA counts what malloc gets from the kernel (since Linux 4.7 private writable mappings too), thus what decoders ask
    for, touched or not. RLIMIT_AS would also count libraries, and the 64 MiB that glibc reserves for every thread and never uses;
    RLIMIT_RSS is not enforced. Elsewhere than on Linux there is no such limit to be had.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = data_bytes() + memory_bytes
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def data_bytes() -> int:
    """What RLIMIT_DATA counts of this process, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))


if __name__ == "__main__":
    main()

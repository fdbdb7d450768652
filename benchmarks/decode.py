"""python -m benchmarks.decode: what it costs to decode in a child that may die, against decoding in this process.

The same pictures go both ways in turn, picture by picture, in an order that alternates: sprites of the arcade wheel as they are
(from the cache, or downloaded by pip) and JPEGs of web sizes, enlarged from those sprites with the grain of a photograph.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from benchmarks.record import Measured, record
from semantica.data.assets import ARCADE, fetch
from semantica.episodes.decoder import Decoder, InProcessDecoder
from semantica.episodes.images import ImageConfig, NormalisedImage
from semantica.episodes.quarantine import Refused

_MAX_RATIO = 1.10
_ROUNDS = 12
_PICTURES = 24  # of each kind


def main() -> None:
    """Measure each kind of picture and record the seconds and their ratio."""
    settings = ImageConfig()
    sprites = _sprites(settings)
    kinds = {
        "sprites as published": sprites,
        "JPEG 800x600": [_photograph(data, 800, 600) for data in sprites],
        "JPEG 2000x1500": [_photograph(data, 2000, 1500) for data in sprites],
    }
    measured: list[Measured] = []
    with Decoder(settings) as isolated, InProcessDecoder(settings) as direct:
        started = time.perf_counter()
        isolated(sprites[0])
        start = time.perf_counter() - started
        totals = np.zeros(2)
        for name, files in kinds.items():
            seconds = _interleaved(files, isolated, direct)
            totals += seconds
            measured += _figures(name, *seconds)
        if isolated.num_started != 1:
            raise RuntimeError(f"decode: expected one child for all good pictures, got {isolated.num_started}")
    measured += _figures("all three, equal parts", *(totals / len(kinds)))
    measured.append(Measured(name="start of a child with its first picture", figure=start, unit="s"))
    print(record("decode", measured))


def _figures(name: str, isolated: float, direct: float) -> list[Measured]:
    ratio = float(isolated / direct)
    return [
        Measured(name=f"{name}, in this process", figure=1000 * direct, unit="ms a picture"),
        Measured(
            name=f"{name}, in a child",
            figure=ratio,
            unit="times that",
            target=f"<= {_MAX_RATIO:.2f}",
            holds=ratio <= _MAX_RATIO,
            peer="in this process",
        ),
    ]


def _interleaved(
    files: Sequence[bytes], isolated: Callable[[bytes], NormalisedImage], direct: Callable[[bytes], NormalisedImage]
) -> tuple[float, float]:
    """(seconds a picture in the child, in this process): the mean over the files of the median over the rounds."""
    seconds: dict[Callable[[bytes], NormalisedImage], list[list[float]]] = {isolated: [], direct: []}
    for data in files:
        for times in seconds.values():
            times.append([])
        for round_number in range(_ROUNDS):
            for decode in (isolated, direct) if round_number % 2 else (direct, isolated):
                started = time.perf_counter()
                decode(data)
                seconds[decode][-1].append(time.perf_counter() - started)
    means = [statistics.fmean(statistics.median(times) for times in seconds[decode]) for decode in (isolated, direct)]
    return means[0], means[1]


def _sprites(settings: ImageConfig) -> list[bytes]:
    """Files of the arcade wheel that ingest accepts, spread over its folders."""
    paths = sorted(path for path in fetch(ARCADE).rglob("*") if path.suffix in {".png", ".jpg"})
    accepted: list[bytes] = []
    with InProcessDecoder(settings) as decode:
        for path in np.random.default_rng(0).permutation(np.array(paths, dtype=object)):
            data = path.read_bytes()
            try:
                decode(data)
            except Refused:
                continue
            accepted.append(data)
            if len(accepted) == _PICTURES:
                break
    return accepted


def _photograph(data: bytes, width: int, height: int) -> bytes:
    """The picture at a web page's size, with noise of 6 levels, as JPEG of quality 85."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA").convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    values = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG", quality=85)
    return stream.getvalue()


if __name__ == "__main__":
    main()

"""FID Inception and the clean resize against the projects they follow, on the same pictures in one run, the ways taken in turn.

python -m benchmarks.extractors [--rounds 7]. Weights are random where the true ones are not here: they change no time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.record import Measured, record
from semantica.measure.networks.inception import INPUT_PX, prepare
from semantica.measure.networks.inception_network import NormedConv, inception_network, with_weights
from semantica.measure.networks.resize import resize_as_clean_fid

_BATCH, _PX = 8, 256


def seconds(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """name -> the median time of one call, every way once a round after one call to warm up."""
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def both_networks() -> tuple[torch.nn.Module, torch.nn.Module]:
    """(torch-fidelity's module, ours with its weights)."""
    from torch_fidelity import feature_extractor_inceptionv3 as peer

    class Unfilled(peer.FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, state_dict: Any) -> None:  # type: ignore[override]
            """Keeps the random weights: the constructor wants a file of them."""

    with tempfile.TemporaryDirectory() as folder:
        torch.save({}, Path(folder) / "none.pth")
        theirs = Unfilled("inception", ["2048"], feature_extractor_weights_path=str(Path(folder) / "none.pth"))
    blocks = [m for m in theirs.modules() if isinstance(m, peer.BasicConv2d)]
    convs = [NormedConv(b.conv.weight, b.bn.running_mean, b.bn.running_var, b.bn.bias, scale=b.bn.weight) for b in blocks]
    return theirs, with_weights(inception_network(), convs).to(memory_format=torch.channels_last)


def each_channel_by_pillow(pictures: np.ndarray) -> np.ndarray:
    """What clean-fid's "clean" mode does, a channel at a time."""
    size = (INPUT_PX, INPUT_PX)
    done = [[Image.fromarray(c.astype(np.float32)).resize(size, Image.Resampling.BICUBIC) for c in p] for p in pictures]
    return np.stack([[np.asarray(c).clip(0, 255) for c in p] for p in done])


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (_BATCH, 3, _PX, _PX), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs, ours = both_networks()

    def features() -> Tensor:
        values: Tensor = ours(prepare(images))
        return values

    with torch.inference_mode():
        inception = seconds({"ours": features, "theirs": lambda: theirs(images)}, rounds)
        resize = seconds(
            {"ours": lambda: resize_as_clean_fid(images, INPUT_PX), "theirs": lambda: each_channel_by_pillow(images.numpy())},
            rounds,
        )
    where = f"{_PX} px, batch {_BATCH}, float32, 1 thread"
    share = inception["ours"] / _BATCH * 1e3
    record(
        "extractors",
        [
            Measured(name=f"Inception features, {where}", figure=share, unit="ms/picture"),
            Measured(
                name=f"Inception features, {where}: time of the peer / ours",
                figure=inception["theirs"] / inception["ours"],
                unit="x",
                target="at least 1",
                holds=inception["theirs"] >= inception["ours"],
                peer="torch-fidelity 0.4.0, FeatureExtractorInceptionV3",
            ),
            Measured(
                name="the clean resize / the Inception features it is made for",
                figure=resize["ours"] / inception["ours"],
                unit="x",
                target="at most 0.1",
                holds=resize["ours"] <= 0.1 * inception["ours"],
            ),
            Measured(
                name=f"clean resize, {where}: time of the peer / ours",
                figure=resize["theirs"] / resize["ours"],
                unit="x",
                peer="Pillow a channel at a time, as clean-fid 0.1.35",
            ),
        ],
    )


if __name__ == "__main__":
    main()

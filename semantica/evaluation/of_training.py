"""What is drawn from a training while it runs: a model of its weights at this moment, pictures for a person, the loss by noise
level.

In: whole weights by name, or the figures of a report. Out: a `Model`, a PNG, an SVG. The network in training is never run, so
that its graph and its generator stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from semantica.data.location import Location
from semantica.data.pictures import StoredPictures, TokensOf, decode, list_pictures, to_array
from semantica.diffusion.settings import SamplerConfig
from semantica.generation.conditions import Conditions
from semantica.generation.generate import choose_conditions, sample_pictures
from semantica.generation.model import Model
from semantica.generation.settings import GenerateConfig, SpeedConfig
from semantica.report.pictures import grid_png
from semantica.training.loop import initial_network
from semantica.training.recipe import TrainConfig

_SAMPLER = SamplerConfig(name="dpm_solver", num_steps=32)  # [C]: enough to see what is learned, in an eighth of the paper's calls
_GUIDANCE = 0.5


@torch.no_grad()
def model_of(weights: Mapping[str, Tensor], config: TrainConfig, device: torch.device | str) -> Model:
    """A model with a copy of these whole weights."""
    network = initial_network(config).to(device).eval()
    for name, parameter in network.named_parameters():
        parameter.copy_(weights[name])
    model = Model(network, config.schedule, config.prediction)
    return model.on(device, SpeedConfig(precision=config.compute.precision))


class TrainingSamples:
    """`samples.png(raw, average)`: per held-out conditioning image one row of it, a sample from the raw weights, one from the EMA.

    Conditions and noise are the same every time, and those of `generate` with the same seed.
    """

    def __init__(self, config: TrainConfig, encodings: Location, tokens_of: TokensOf | None, device: torch.device | str) -> None:
        self.config, self.device = config, device
        self.settings = GenerateConfig(sampler=_SAMPLER, seed=config.seed)
        chosen = choose_conditions(list_pictures(encodings), config.num_samples, config.seed)
        self.names = [f"{picture.image_id}/0" for picture in chosen]
        self.cond = Conditions(encodings, tokens_of).read(chosen)
        stored = StoredPictures(encodings, stage="train").read(chosen)
        self.conditions = [to_array(decode(data, config.denoiser.resolution_px)) for data in stored.values()]

    def png(self, raw: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> bytes:
        """The grid of whole weights by name."""
        rows = list(zip(self.conditions, self._drawn(raw), self._drawn(average), strict=True))
        return grid_png(rows, ["condition", "raw", "EMA"])

    def _drawn(self, weights: Mapping[str, Tensor]) -> list[np.ndarray]:
        model = model_of(weights, self.config, self.device)
        return [to_array(picture) for picture in sample_pictures(model, self.cond, self.names, _GUIDANCE, self.settings)]


def levels_svg(figures: Mapping[str, float], step: int) -> str | None:
    """The losses by noise level of a report, which covers the interval that ends with `step`; None for a report without them."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for label, name in (("eps", "loss"), ("v", "v_loss")):
        values = {int(m[1]): value for key, value in figures.items() if (m := re.fullmatch(rf"{name}_logsnr_(-?\d+)", key))}
        series[label] = ([float(level) for level in sorted(values)], [values[level] for level in sorted(values)])
    if not series["eps"][0]:
        return None
    from semantica.report.charts import Curve, curve_svg  # of the driver alone: Matplotlib is a tenth of a worker's start

    curve = Curve(
        title=f"Loss by noise level, step {step}", x_label="logsnr", y_label="mean square of the error", log_y=True, series=series
    )
    return curve_svg(curve)

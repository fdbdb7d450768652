"""What training shows while it runs, for a person to look at: pictures from raw and EMA weights, and the loss by noise level.

In: the network in training with its average, or the levels of a report. Out: a PNG, an SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from semantica.report.charts import Curve, curve_svg
from semantica.report.pictures import grid_png
from semantica.training.loop import initial_network
from semantica.training.recipe import TrainConfig
from semantica.training.watch import LevelLoss

_SAMPLER = SamplerConfig(name="dpm_solver", num_steps=32)  # [C]: enough to see what is learned, in an eighth of the paper's calls
_GUIDANCE = 0.5


class TrainingSamples:
    """`samples.png(raw, average)`: a row a held-out conditioning image: itself, a sample of the raw weights, one of the average.

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
        """The grid of whole weights by name. They are copied: the network in training is never run, so its graph stays as it is."""
        rows = list(zip(self.conditions, self._drawn(raw), self._drawn(average), strict=True))
        return grid_png(rows, ["condition", "raw", "EMA"])

    def _drawn(self, weights: Mapping[str, Tensor]) -> list[np.ndarray]:
        network = initial_network(self.config).to(self.device).eval()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(weights[name])
        model = Model(network, self.config.schedule, self.config.prediction)
        model = model.on(self.device, SpeedConfig(precision=self.config.compute.precision))
        return [to_array(picture) for picture in sample_pictures(model, self.cond, self.names, _GUIDANCE, self.settings)]


def levels_svg(levels: Sequence[LevelLoss], step: int) -> str:
    """The curve of the losses by noise level, over the interval that ends with `step`."""
    x = [level.logsnr for level in levels]
    curve = Curve(
        title=f"Loss by noise level, step {step}",
        x_label="logsnr",
        y_label="mean square of the error",
        log_y=True,
        series={"eps": (x, [level.loss for level in levels]), "v": (x, [level.v_loss for level in levels])},
    )
    return curve_svg(curve)

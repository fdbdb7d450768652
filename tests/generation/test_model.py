"""A model on its device: rows that fit in memory, chunks that become smaller when they do not."""

import pytest
import torch

from semantica.conditioning.values import Conditioning
from semantica.denoiser import configs
from semantica.denoiser.sizes import PeakBytes, sampling_bytes
from semantica.denoiser.uvit import UViT
from semantica.diffusion.settings import ScheduleConfig
from semantica.generation import model as models
from semantica.generation.model import Model, in_chunks
from semantica.generation.settings import SpeedConfig


class Memory:
    """draw(start, end) on a device that holds `rows` rows, which remembers what it was asked."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __call__(self, start, end):
        self.asked.append(end - start)
        if end - start > self.rows:
            raise torch.OutOfMemoryError
        return torch.arange(start, end)


def test_chunks_are_halved_until_they_fit_and_every_row_is_drawn_once():
    memory = Memory(rows=3)
    assert in_chunks(memory, 10, 16).tolist() == list(range(10))
    assert memory.asked == [10, 5, 3, 3, 3, 1]


def test_a_device_without_room_for_one_row_says_so():
    memory = Memory(rows=0)
    with pytest.raises(torch.OutOfMemoryError):
        in_chunks(memory, 4, 2)
    assert memory.asked == [2, 1]


def test_bytes_are_counted_while_they_are_alive_and_views_and_older_tensors_are_not():
    old = torch.zeros(1000)
    with PeakBytes() as counter:
        total = old.view(10, 100) + 1  # 4000 new bytes
        for _ in range(5):
            total = total * 2 + 1  # 4000 more for each product and sum, the old ones freed
        assert total.t()[0].shape == (10,)
    assert counter.peak == 12_000
    assert counter.now == 4_000


def test_the_estimate_is_what_a_real_run_allocates():
    config = configs.tiny()
    network = UViT(config).eval()
    images, rows = torch.zeros(2, 65, 384), 2
    cond = Conditioning.of(images, torch.zeros(2, 384))
    with torch.no_grad(), PeakBytes() as counter:
        prepared = network.prepare(cond)
        network(torch.zeros(rows, 3, 32, 32), torch.zeros(rows), prepared)
    assert sampling_bytes(config, torch.float32) == pytest.approx(counter.peak / rows, rel=0.02)
    assert sampling_bytes(config, torch.bfloat16) == sampling_bytes(config, torch.float32) // 2


def test_as_many_rows_as_the_free_memory_holds_and_one_at_least(monkeypatch):
    config = configs.tiny()
    model = Model(UViT(config).eval(), ScheduleConfig(resolution_px=32))
    a_row = sampling_bytes(config, torch.float32)
    for free, expected in ((0, 1), (100 * a_row / models.MEMORY_SHARE + 1, 100)):
        memory = type("Memory", (), {"available": free})
        monkeypatch.setattr(models.psutil, "virtual_memory", lambda memory=memory: memory)
        assert model.rows_that_fit() == expected


def test_half_precision_halves_the_weights_and_answers_in_float32():
    model = Model(UViT(configs.tiny()).eval(), ScheduleConfig(resolution_px=32)).on("cpu", SpeedConfig(precision="bfloat16"))
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}
    cond = Conditioning.of(torch.zeros(1, 65, 384), torch.zeros(1, 384))
    assert model.bind(cond)(torch.zeros(1, 3, 32, 32), torch.zeros(1)).dtype == torch.float32

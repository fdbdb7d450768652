"""What is said while training runs: the loss by noise level as sums, speed as its definitions, and no wait for the device."""

import copy
import math
import mmap
import time

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from semantica.denoiser.sizes import training_flops
from semantica.diffusion.process import diffuse, v_target
from semantica.diffusion.schedule import logsnr
from semantica.diffusion.settings import ScheduleConfig
from semantica.training.backend import TorchBackend
from semantica.training.ema import Ema
from semantica.training.loop import Hooks, fit, initial_network
from semantica.training.recipe import EmaConfig, OptimizerConfig
from semantica.training.step import make_optimizer, step_loss, step_noise, update
from semantica.training.watch import WIDTH, StepSums, centres, level_losses, level_sums, memory_bytes, peak_flops
from tests.signals import dropping

SCHEDULE = ScheduleConfig(resolution_px=16)
YES, NO = torch.tensor(True), torch.tensor(False)


def test_the_bins_cover_every_noise_level_and_are_named_by_even_numbers():
    assert centres(SCHEDULE) == list(range(-14, 15, 2))
    assert centres(ScheduleConfig(resolution_px=16, logsnr_min=-20.0, logsnr_max=9.5)) == list(range(-20, 11, 2))
    for schedule in (SCHEDULE, ScheduleConfig(resolution_px=16, logsnr_min=-3.2, logsnr_max=1.1)):
        middles = centres(schedule)
        assert middles[0] - WIDTH / 2 <= schedule.logsnr_min < middles[0] + WIDTH / 2
        assert middles[-1] - WIDTH / 2 < schedule.logsnr_max <= middles[-1] + WIDTH / 2


def test_a_bin_holds_the_means_of_the_examples_nearest_to_it():
    lam, loss = torch.tensor([-15.0, -13.5, 0.9, -0.9, 1.1, 15.0]), torch.tensor([1.0, 3.0, 5.0, 7.0, 11.0, 13.0])
    levels = level_losses(level_sums(loss, lam, YES, SCHEDULE).tolist(), SCHEDULE)
    assert [(level.logsnr, level.num, level.loss) for level in levels] == [(-14, 2, 2.0), (0, 2, 6.0), (2, 1, 11.0), (14, 1, 13.0)]
    weight = 1 / (1 + math.exp(-1.1))
    assert levels[2].v_loss == pytest.approx(11 / weight, rel=1e-6)


def test_the_v_loss_is_the_mean_square_of_the_error_of_v(tiny):
    config = tiny.config()
    network, batch = initial_network(config).eval(), tiny.loader(config).batch(0)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.05
        noise = step_noise(0, 0, batch.slots, (3, 16, 16), dropping(0.0))
        lam = logsnr(noise.t, config.schedule)
        v = v_target(batch.x, noise.eps, lam)
        error = (v - network(diffuse(batch.x, noise.eps, lam), lam, batch.cond)).square().mean((1, 2, 3))
        losses = step_loss(network, batch.x, batch.cond, noise, config.schedule)
    levels = level_losses(level_sums(losses, lam, YES, config.schedule).tolist(), config.schedule)
    for level in levels:
        inside = (lam - level.logsnr).abs() <= 1
        assert level.num == int(inside.sum())
        assert level.v_loss == pytest.approx(float(error[inside].mean()), rel=1e-4)


def test_sums_of_parts_add_up_to_those_of_the_whole_and_a_step_not_counted_adds_nothing():
    generator = torch.Generator().manual_seed(0)
    lam, loss = 30 * torch.rand(64, generator=generator) - 15, torch.rand(64, generator=generator)
    whole = level_sums(loss, lam, YES, SCHEDULE)
    torch.testing.assert_close(sum(level_sums(loss[r::4], lam[r::4], YES, SCHEDULE) for r in range(4)), whole)
    assert float(whole[0].sum()) == 64
    assert float(whole[1].sum()) == pytest.approx(float(loss.double().sum()), rel=1e-12)
    assert not level_sums(loss * math.nan, lam, NO, SCHEDULE).any()


def reports_of(tiny, config, total=None, rank=0, world=1):
    reports, backend = [], TorchBackend()
    if total is not None:
        backend.total = total
    hooks = Hooks(reports.append, lambda state: None)
    fit(config, tiny.loader(config, rank, world), tiny.provenance, hooks, backend=backend)
    return reports


def test_the_loss_is_the_mean_over_all_examples_and_so_of_the_curve(tiny):
    config = tiny.config(num_steps=2, log_every=2)
    seen = []
    for step in range(2):  # the rate is so small that both steps see the first weights
        network, batch = initial_network(config).eval(), tiny.loader(config).batch(step)
        noise = step_noise(config.seed, step, batch.slots, (3, 16, 16), config.dropout)
        seen.append(step_loss(network, batch.x, batch.cond, noise, config.schedule).detach())
    still = tiny.config(num_steps=2, log_every=2, optimizer=OptimizerConfig(learning_rate=1e-12))
    (report,) = reports_of(tiny, still)
    assert report.loss == pytest.approx(float(torch.cat(seen).mean()), rel=1e-5)
    assert sum(level.num for level in report.levels) == 16
    assert sum(level.num * level.loss for level in report.levels) / 16 == pytest.approx(report.loss, rel=1e-12)


def test_figures_add_up_over_workers(tiny):
    """Two workers that exchange figures only: each is told the sum of both shares."""
    config = tiny.config(num_steps=1, log_every=1)
    vectors = []
    for rank in range(2):
        reports_of(tiny, config, total=lambda figures: vectors.append(figures) or figures, rank=rank, world=2)
    (both,) = reports_of(tiny, config, total=lambda figures: vectors[0] + vectors[1], rank=0, world=2)
    (whole,) = reports_of(tiny, config)
    assert both.loss == pytest.approx(whole.loss, rel=1e-5)
    assert [(a.logsnr, a.num) for a in both.levels] == [(a.logsnr, a.num) for a in whole.levels]
    assert [a.loss for a in both.levels] == pytest.approx([a.loss for a in whole.levels], rel=1e-5)
    seconds, waited = (vectors[0] + vectors[1])[-2:].tolist()
    assert both.images_per_second == pytest.approx(8 / (seconds / 2))
    assert both.data_wait_share == pytest.approx(waited / seconds)


def test_the_metrics_of_a_report_are_plain_numbers_named_by_the_level(tiny):
    report = reports_of(tiny, tiny.config())[-1]
    metrics = report.metrics()
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    assert {"loss", "grad_norm", "learning_rate", "images_per_second", "data_wait_share", "memory_bytes", "num_skipped"} <= set(
        metrics
    )
    assert "mfu" not in metrics
    for level in report.levels:
        assert metrics[f"loss_logsnr_{level.logsnr}"] == level.loss
        assert metrics[f"v_loss_logsnr_{level.logsnr}"] == level.v_loss


def test_mfu_is_the_flops_of_the_images_as_a_share_of_the_configured_peak(tiny):
    for report in reports_of(tiny, tiny.config(peak_tflops=0.5)):
        assert report.mfu == pytest.approx(training_flops(tiny.config().denoiser) * report.images_per_second / 0.5e12, rel=1e-9)
    assert peak_flops(tiny.config(), "cpu") is None


def test_memory_is_what_this_process_holds():
    before = memory_bytes("cpu")
    with mmap.mmap(-1, 2**28) as held:  # not from malloc, which may hand out pages that the process holds already
        held.write(b"\1" * len(held))
        assert memory_bytes("cpu") - before == pytest.approx(len(held), rel=0.1)


def test_a_step_never_waits_for_the_device(tiny):
    """Tensors without data refuse to be read."""
    config = tiny.config()
    with FakeTensorMode():
        network = nn.Linear(4, 4)
        optimizer = make_optimizer(network, config.optimizer)
        sums = StepSums(config, "cpu")
        for _ in range(2):
            losses = network(torch.randn(8, 4)).square().mean(1)
            losses.mean().backward()
            sums.add(losses.detach(), torch.rand(8), update(network, optimizer, config.optimizer, 0.1))
        with pytest.raises(DataDependentOutputException):
            sums.check(2)


def test_a_gradient_that_is_not_finite_in_one_place_leaves_weights_moments_and_adds_to_the_count_of_steps():
    network = nn.Linear(3, 2)
    settings = OptimizerConfig()
    optimizer = make_optimizer(network, settings)
    for bad in (None, math.nan, math.inf, None):
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        held = [[t.clone() for t in (p, *(optimizer.state[p][m] for m in ("exp_avg", "exp_avg_sq") if m in optimizer.state[p]))]
                for p in network.parameters()]  # fmt: skip
        if bad is not None:
            network.bias.grad[1] = bad
        norm = update(network, optimizer, settings, 0.1)
        assert bool(torch.isfinite(norm)) == (bad is None)
        now = [[t for t in (p, *(optimizer.state[p][m] for m in ("exp_avg", "exp_avg_sq")))] for p in network.parameters()]
        same = [torch.equal(a, b) for left, right in zip(held, now, strict=True) for a, b in zip(left, right, strict=False)]
        assert all(same) if bad is not None else not any(same)
        assert network.weight.grad is None
    assert {float(state["step"]) for state in optimizer.state.values()} == {4.0}


def test_sharded_weights_are_updated_skipped_and_averaged_like_whole_ones(tmp_path):
    """FSDP2 over one worker, bit for bit."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        whole = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        sharded = fully_shard(copy.deepcopy(whole), mesh=init_device_mesh("cpu", (1,)))
        found = []
        for network in (whole, sharded):
            optimizer, ema = make_optimizer(network, OptimizerConfig()), Ema(network, EmaConfig())
            norms = []
            for value in (1.0, math.nan, 2.0):
                network(torch.full((3, 4), value)).square().mean().backward()
                norms.append(update(network, optimizer, OptimizerConfig(), 0.1))
                ema.update()
            assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}
            assert [bool(norm.isfinite()) for norm in norms] == [True, False, True]
            values = [*network.parameters(), *ema.values.values()]
            found.append([v.full_tensor() if isinstance(v, DTensor) else v for v in values])
        assert all(isinstance(p, DTensor) for p in sharded.parameters())
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    finally:
        torch.distributed.destroy_process_group()


def test_the_time_that_a_slow_loader_takes_is_counted_as_waiting(tiny):
    config = tiny.config(prefetch=0)
    inner, reports = tiny.loader(config), []

    class Slow:
        def batch(self, step):
            time.sleep(0.05)
            return inner.batch(step)

    fit(config, Slow(), tiny.provenance, Hooks(reports.append, lambda state: None))
    for report in reports:
        seconds = config.log_every * config.batch_size / report.images_per_second
        assert config.log_every * 0.05 <= report.data_wait_share * seconds < seconds

"""The loop against a plain one written here: what it adds for speed, safety and reports does not change a bit of the weights."""

from dataclasses import replace

import pytest
import torch

from semantica.diffusion.keyed_random import slot_seed
from semantica.training.checkpoint import open_checkpoint, write_checkpoint
from semantica.training.ema import Ema
from semantica.training.loop import Hooks, fit, initial_network
from semantica.training.step import step_loss, step_noise
from semantica.training.watch import NonFiniteError


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def plainly(tiny, config, skipped=()):
    """(weights, EMA) of a loop without anything: noise, loss, backward, clip, Adam, average. No update in `skipped` steps."""
    loader, network = tiny.loader(config), initial_network(config).train().to(memory_format=torch.channels_last)
    rule = config.optimizer
    optimizer = torch.optim.Adam(
        network.parameters(), lr=rule.learning_rate, betas=(rule.beta1, rule.beta2), eps=rule.eps, fused=True
    )
    average = {name: p.detach().clone() for name, p in network.named_parameters()}
    for step in range(config.num_steps):
        batch = loader.batch(step)
        noise = step_noise(config.seed, step, batch.slots, (3, 16, 16), config.dropout)
        torch.manual_seed(slot_seed("dropout", config.seed, step, batch.slots.start))
        if step in skipped:
            for state in optimizer.state.values():
                state["step"] += 1
        else:
            step_loss(network, batch.x, batch.cond, noise, config.schedule).mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), rule.max_grad_norm, foreach=True)
            optimizer.param_groups[0]["lr"] = rule.rate(step, config.num_steps)
            optimizer.step()
            optimizer.zero_grad()
        for name, p in network.named_parameters():
            average[name].lerp_(p.detach(), 1 - config.ema.at(step))
    return dict(network.named_parameters()), average


def ours(tiny, config, folder, loader=None, start=None, **hooks):
    """(weights, EMA, reports) of the loop, with every checkpoint in folder/STEP."""
    reports = []
    made = Hooks(reports.append, lambda state: write_checkpoint(folder / str(state.step), state.snapshot()), **hooks)
    network = fit(config, loader or tiny.loader(config), tiny.provenance, made, start=start)
    average = dict(open_checkpoint(folder / str(config.num_steps)).network().named_parameters())
    return dict(network.named_parameters()), average, reports


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


class Damaged:
    """A real loader, whose batches of some steps hold one pixel that is not finite."""

    def __init__(self, loader, steps, value=float("nan")):
        self.loader, self.steps, self.value = loader, steps, value

    def batch(self, step):
        batch = self.loader.batch(step)
        if step not in self.steps:
            return batch
        x = batch.x.clone()
        x[1, 2, 3, 4] = self.value
        return replace(batch, x=x)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 9])
def test_the_loop_trains_the_weights_of_a_plain_loop_bit_for_bit(tiny, tmp_path, prefetch):
    config = tiny.config(prefetch=prefetch)
    weights, average, _ = ours(tiny, config, tmp_path)
    expected, expected_average = plainly(tiny, config)
    assert equal(weights, expected)
    assert equal(average, expected_average)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_loop_recycles_every_batch_once_it_has_trained_on_it(tiny, tmp_path, prefetch):
    config, memory = tiny.config(prefetch=prefetch), []
    loader = tiny.loader(config)
    new = loader._memory.new
    loader._memory.new = lambda *shape: memory.append(new(*shape)) or memory[-1]  # held, so no address comes twice by chance
    ours(tiny, config, tmp_path, loader)
    assert len(memory) == 2 * config.num_steps  # pictures and tokens
    assert len({tensor.data_ptr() for tensor in memory}) <= 2 * (prefetch + 2) < len(memory)


def test_what_is_reported_and_drawn_changes_no_weight(tiny, tmp_path):
    config = tiny.config(log_every=1, sample_every=1, peak_tflops=1.0)

    def draw(step, network, ema):
        torch.manual_seed(step)
        torch.randn(5)

    assert equal(ours(tiny, config, tmp_path, on_samples=draw)[0], plainly(tiny, tiny.config())[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_step_that_is_not_finite_changes_no_weight_and_no_moment_and_is_counted(tiny, tmp_path, value):
    config = tiny.config(log_every=3)
    weights, average, reports = ours(tiny, config, tmp_path, Damaged(tiny.loader(config), {1, 4, 5}, value))
    expected, expected_average = plainly(tiny, config, skipped={1, 4, 5})
    assert equal(weights, expected)
    assert equal(average, expected_average)
    assert [r.num_skipped for r in reports] == [1, 2]
    assert all(0 < r.loss < 10 and 0 < r.grad_norm < 100 for r in reports)


def test_a_run_with_skipped_steps_resumes_bit_for_bit(tiny, tmp_path):
    config = tiny.config()
    loader = Damaged(tiny.loader(config), {0, 4})
    weights, average, _ = ours(tiny, config, tmp_path / "a", loader)
    again = ours(tiny, config, tmp_path / "b", loader, start=open_checkpoint(tmp_path / "a" / "3"))
    assert equal(again[0], weights)
    assert equal(again[1], average)
    assert (tmp_path / "a" / "6" / "optimizer.safetensors").read_bytes() == (
        tmp_path / "b" / "6" / "optimizer.safetensors"
    ).read_bytes()


def test_too_many_skipped_steps_in_a_row_stop_the_run_before_it_saves_and_others_do_not(tiny, tmp_path):
    config = tiny.config(max_skipped=3, log_every=6, checkpoint_every=2)
    ours(tiny, config, tmp_path / "apart", Damaged(tiny.loader(config), {0, 1, 3, 4}))
    with pytest.raises(NonFiniteError, match=r"not finite in 3 steps in a row up to step 4 .*; lower train\.optimizer"):
        ours(tiny, config, tmp_path / "row", Damaged(tiny.loader(config), {1, 2, 3}))
    assert [p.name for p in (tmp_path / "row").iterdir()] == ["2"]


def test_a_report_whose_every_step_was_skipped_says_so_and_names_no_level(tiny, tmp_path):
    config = tiny.config(num_steps=4)
    _, _, reports = ours(tiny, config, tmp_path, Damaged(tiny.loader(config), {2, 3}))
    assert [r.num_skipped for r in reports] == [0, 2]
    assert reports[1].loss != reports[1].loss
    assert reports[1].grad_norm != reports[1].grad_norm
    assert reports[0].levels
    assert not reports[1].levels


def test_samples_are_asked_for_every_so_often_and_at_the_end_with_the_weights_of_that_step(tiny, tmp_path):
    seen = {}

    def draw(step, network, ema):
        assert isinstance(ema, Ema)
        seen[step] = ({n: p.detach().clone() for n, p in network.named_parameters()}, {n: v.clone() for n, v in ema.values.items()})

    config = tiny.config(sample_every=4, checkpoint_every=4)
    ours(tiny, config, tmp_path, on_samples=draw)
    assert list(seen) == [4, 6]
    for step, (raw, average) in seen.items():
        saved = open_checkpoint(tmp_path / str(step))
        assert equal(raw, dict(saved.network(ema=False).named_parameters()))
        assert equal(average, dict(saved.network().named_parameters()))


def test_no_samples_are_asked_for_unless_configured(tiny, tmp_path):
    asked = []
    ours(tiny, tiny.config(), tmp_path, on_samples=lambda *arguments: asked.append(arguments))
    assert asked == []


def test_micro_batches_train_alike_up_to_rounding(tiny, tmp_path):
    """Without dropout inside the network, whose masks belong to the micro-batch."""
    stages = tuple(replace(stage, dropout=0.0) for stage in tiny.config().denoiser.stages)
    config = tiny.config(denoiser=replace(tiny.config().denoiser, stages=stages))
    *_, whole = ours(tiny, config, tmp_path / "whole")
    *_, parts = ours(tiny, replace(config, micro_batch_size=3), tmp_path / "parts")
    assert [r.loss for r in parts] == pytest.approx([r.loss for r in whole], rel=1e-4)
    assert [r.grad_norm for r in parts] == pytest.approx([r.grad_norm for r in whole], rel=1e-3)

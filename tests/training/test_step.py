"""One step: chance keyed by the slot, the loss of a batch as the mean of its parts, learning."""

import copy
from dataclasses import replace

import pytest
import torch

from semantica.conditioning.signals import IMAGES, SIMILARITY
from semantica.diffusion.process import diffuse, eps_from_x, v_target, x_from
from semantica.diffusion.schedule import logsnr
from semantica.diffusion.settings import ScheduleConfig
from semantica.training.loop import initial_network
from semantica.training.recipe import OptimizerConfig
from semantica.training.step import StepNoise, add_gradients, make_optimizer, step_loss, step_noise, update
from tests.signals import changed, dropping

SHAPE = (3, 4, 4)


def parts(noise):
    return noise.t, noise.eps, *noise.dropped.values()


def in_double(noise):
    return StepNoise(noise.t.double(), noise.eps.double(), noise.dropped)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(parts(a), parts(b), strict=True))


def row(noise, index):
    return noise[index : index + 1]


def test_the_noise_of_a_slot_does_not_depend_on_the_other_slots_asked_for():
    whole = step_noise(0, 7, range(8), SHAPE, dropping(0.5))
    for slots in ([3], [6, 3], [3, 0, 5]):
        some = step_noise(0, 7, slots, SHAPE, dropping(0.5))
        for index, slot in enumerate(slots):
            assert same(row(some, index), row(whole, slot))


@pytest.mark.parametrize("world", [2, 4])
def test_the_noise_of_all_workers_put_together_is_that_of_one(world):
    whole = step_noise(3, 1, range(8), SHAPE, dropping(0.5))
    for rank in range(world):
        share = step_noise(3, 1, range(rank, 8, world), SHAPE, dropping(0.5))
        assert all(torch.equal(a, b[rank::world]) for a, b in zip(parts(share), parts(whole), strict=True))


def test_every_seed_step_and_slot_has_noise_of_its_own():
    asked = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1), (0, 1, 1)]
    assert len({float(step_noise(seed, step, [slot], SHAPE, dropping(0.1)).t) for seed, step, slot in asked}) == len(asked)
    assert same(step_noise(5, 6, [7], SHAPE, dropping(0.1)), step_noise(5, 6, [7], SHAPE, dropping(0.1)))


def test_the_noise_has_the_distributions_it_should_have():
    noise = step_noise(0, 0, range(4000), SHAPE, dropping(0.1))
    assert float(noise.t.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / 4000) ** 0.5)
    assert float(noise.t.var()) == pytest.approx(1 / 12, rel=0.1)
    assert float(noise.dropped[IMAGES].float().mean()) == pytest.approx(0.1, abs=4 * (0.09 / 4000) ** 0.5)
    count = noise.eps.numel()
    assert float(noise.eps.mean()) == pytest.approx(0, abs=4 / count**0.5)
    assert float(noise.eps.var()) == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    assert abs(float(torch.corrcoef(torch.stack([noise.t, noise.eps[:, 0, 0, 0]]))[0, 1])) < 4 / 4000**0.5


def test_the_noise_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    step_noise(0, 0, range(3), SHAPE, dropping(0.1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_share_of_similarities_that_are_dropped_alone_is_the_configured_one_and_leaves_the_rest():
    rates = ((0.1, 0.3), (0.1, 0.0), (0.0, 0.3))
    noise, plain, alone = (step_noise(0, 0, range(4000), SHAPE, dropping(*each)) for each in rates)
    assert float(alone.dropped[SIMILARITY].float().mean()) == pytest.approx(0.3, abs=4 * (0.21 / 4000) ** 0.5)
    assert not alone.dropped[IMAGES].any()
    assert torch.equal(plain.dropped[SIMILARITY], plain.dropped[IMAGES])
    assert torch.equal(noise.dropped[SIMILARITY], plain.dropped[IMAGES] | alone.dropped[SIMILARITY])
    assert all(torch.equal(a, b) for a, b in zip(parts(noise)[:3], parts(plain)[:3], strict=True))


@pytest.mark.parametrize("prediction", ["v", "eps", "x"])
def test_every_prediction_is_trained_on_the_error_of_eps(tiny, prediction):
    config, network, batch, noise = network_and_batch(tiny)
    noise = in_double(noise)
    cond = changed(batch.cond, tokens=batch.cond.tokens.double(), pooled=batch.cond.pooled.double())
    with torch.no_grad():
        loss = step_loss(network, batch.x.double(), cond, noise, config.schedule, prediction)
        lam = logsnr(noise.t, config.schedule)
        z = diffuse(batch.x.double(), noise.eps, lam)
        x_hat = x_from(prediction, z, network(z, lam, cond.dropped(noise.dropped)), lam)
    torch.testing.assert_close(loss, (noise.eps - eps_from_x(z, x_hat, lam)).square().mean((1, 2, 3)), rtol=1e-6, atol=1e-9)


def test_no_dropout_drops_none():
    assert not any(mask.any() for mask in step_noise(0, 0, range(500), SHAPE, dropping(0.0)).dropped.values())


def network_and_batch(tiny, dtype=torch.float64):
    """A network in which no weight is zero, in eval mode (no dropout), a real batch and its noise."""
    config = tiny.config()
    network = initial_network(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator).to(dtype)
    batch = tiny.loader(config).batch(0)
    noise = step_noise(config.seed, 0, batch.slots, (3, 16, 16), dropping(0.5))
    return config, network, batch, noise


def loss_and_gradients(network, batch, noise, schedule, rows):
    network.zero_grad()
    own = in_double(noise[rows])
    cond = batch.cond[rows]
    loss = step_loss(
        network, batch.x[rows].double(), changed(cond, tokens=cond.tokens.double(), pooled=cond.pooled.double()), own, schedule
    )
    loss.mean().backward()
    return loss.detach(), [p.grad.clone() for p in network.parameters()]


def test_the_loss_and_gradients_of_a_batch_are_the_means_of_its_halves(tiny):
    config, network, batch, noise = network_and_batch(tiny)
    whole, gradients = loss_and_gradients(network, batch, noise, config.schedule, slice(None))
    halves = [loss_and_gradients(network, batch, noise, config.schedule, slice(rank, None, 2)) for rank in range(2)]
    torch.testing.assert_close(torch.stack([halves[0][0], halves[1][0]], 1).flatten(), whole, rtol=1e-12, atol=1e-12)
    for all_of_it, first, second in zip(gradients, halves[0][1], halves[1][1], strict=True):
        torch.testing.assert_close((first + second) / 2, all_of_it, rtol=1e-9, atol=1e-12)
    assert max(float(g.abs().max()) for g in gradients) > 1e-3


def test_the_loss_at_the_start_is_alpha_squared_times_the_target(tiny):
    # The network's output is exactly zero at the start.
    config = tiny.config()
    batch = tiny.loader(config).batch(0)
    noise = step_noise(0, 0, batch.slots, (3, 16, 16), dropping(0.1))
    lam = logsnr(noise.t, config.schedule)
    expected = torch.sigmoid(lam) * v_target(batch.x, noise.eps, lam).square().mean((1, 2, 3))
    torch.testing.assert_close(step_loss(initial_network(config), batch.x, batch.cond, noise, config.schedule), expected)


def test_a_dropped_condition_changes_nothing_when_it_is_another(tiny):
    config, network, batch, noise = network_and_batch(tiny, torch.float32)
    other = changed(batch.cond, tokens=batch.cond.tokens + 1, pooled=batch.cond.pooled - 1)
    with torch.no_grad():
        a, b = (step_loss(network, batch.x, cond, noise, config.schedule) for cond in (batch.cond, other))
    dropped = noise.dropped[IMAGES]
    assert 0 < dropped.sum() < len(dropped)
    assert torch.equal(a[dropped], b[dropped])
    assert (a[~dropped] != b[~dropped]).all()


def test_the_loss_of_one_repeated_batch_falls(tiny):
    config = tiny.config()
    network = initial_network(config).eval()
    batch = tiny.loader(config).batch(0)
    noise = step_noise(0, 0, batch.slots, (3, 16, 16), dropping(0.0))
    settings = OptimizerConfig(learning_rate=3e-3, warmup_steps=0)
    optimizer = make_optimizer(network, settings)
    losses = []
    for _ in range(60):
        loss = step_loss(network, batch.x, batch.cond, noise, ScheduleConfig(resolution_px=16)).mean()
        torch.autograd.backward(loss)
        update(network, optimizer, settings, settings.learning_rate)
        losses.append(float(loss.detach()))
    # Pixels are noise, so x cannot be told from z in general: what falls is what one batch allows.
    assert losses[-1] < 0.6 * losses[0]


def test_the_network_at_the_start_depends_on_the_seed_alone_and_leaves_the_global_generator(tiny):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = initial_network(tiny.config()).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = copy.deepcopy(initial_network(tiny.config()).state_dict())
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = initial_network(tiny.config(seed=1)).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def gradients_of(tiny, config, shares):
    """(losses in the order of the slots, mean gradients) of the workers' shares, each added up as the loop does; dropout is on."""
    network = network_and_batch(tiny, torch.float32)[1].train()
    losses, gradients = torch.empty(config.batch_size), []
    for rank in range(shares):
        batch = tiny.loader(config, rank, shares).batch(0)
        noise = step_noise(config.seed, 0, batch.slots, (3, 16, 16), dropping(0.5))
        network.zero_grad()
        losses[batch.slots.start :: batch.slots.step] = add_gradients(network, batch, noise, 0, config)
        gradients.append([p.grad.clone() for p in network.parameters()])
    return losses, [sum(parts) / shares for parts in zip(*gradients, strict=True)]


@pytest.mark.parametrize("size", [2, 4])
def test_micro_batches_of_one_worker_are_the_batches_of_as_many_workers_dropout_included(tiny, size):
    config = tiny.config(micro_batch_size=size)
    losses, gradients = gradients_of(tiny, config, 1)
    expected, averages = gradients_of(tiny, tiny.config(), 8 // size)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients, averages, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 100])
def test_micro_batches_of_any_size_give_the_loss_and_gradients_of_the_whole_batch(tiny, size):
    config, network, batch, noise = network_and_batch(tiny, torch.float32)  # in eval mode
    whole = add_gradients(network, batch, noise, 0, config)
    expected = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    losses = add_gradients(network, batch, noise, 0, replace(config, micro_batch_size=size))
    torch.testing.assert_close(losses, whole, rtol=1e-5, atol=1e-6)
    for p, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [8, 4])
def test_a_loss_that_overflows_makes_gradients_that_other_workers_see(tiny, size):
    config = tiny.config(prediction="x", micro_batch_size=size)
    batch = tiny.loader(config).batch(0)
    noise = step_noise(0, 0, batch.slots, (3, 16, 16), dropping(0.0))
    noise = replace(noise, t=torch.zeros_like(noise.t))  # where an error of x weighs exp(15)
    network = initial_network(config)
    losses = add_gradients(network, replace(batch, x=batch.x * 1e17), noise, 0, config)
    assert losses.isinf().all()
    assert network.head_out.weight.grad.isnan().all()
    network.zero_grad()
    mean = step_loss(network, batch.x * 1e17, batch.cond, noise, config.schedule, "x").mean()
    mean.backward()  # by itself it would not be seen
    assert network.head_out.weight.grad.isfinite().all()

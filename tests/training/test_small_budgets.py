"""What helps small trainings: the weighting of noise levels, standardised tokens, and places of tokens."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from semantica.conditioning.values import Conditioning
from semantica.data.dataset import read_manifest, read_shard
from semantica.data.schemas import token_rows
from semantica.denoiser.layers import place_code
from semantica.diffusion.process import diffuse, eps_loss, loss_weight, v_target
from semantica.errors import FieldError
from semantica.training.checkpoint import open_checkpoint, write_checkpoint
from semantica.training.loop import Hooks, fit, initial_network

LEVELS = torch.tensor([-14.0, -6.0, 0.0, 6.0, 14.0])


@pytest.mark.parametrize("prediction", ["v", "eps", "x"])
def test_the_loss_with_weighting_v_is_that_of_v_whatever_the_network_predicts(prediction):
    generator = torch.Generator().manual_seed(0)
    x, eps, x_hat = torch.randn((3, 5, 3, 4, 4), generator=generator, dtype=torch.float64)
    level = LEVELS.double()
    z = diffuse(x, eps, level)
    alpha, sigma = (torch.sigmoid(s * level).sqrt()[:, None, None, None] for s in (1, -1))
    eps_hat, v_hat = (z - alpha * x_hat) / sigma, (alpha * z - x_hat) / sigma
    output = {"v": v_hat, "eps": eps_hat, "x": x_hat}[prediction]
    expected = (v_target(x, eps, level) - v_hat).square().mean(dim=(1, 2, 3))
    got = eps_loss(output, x, eps, level, prediction) * loss_weight(level, "v")
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


def test_the_weight_of_a_level_is_1_or_falls_around_the_bias():
    assert torch.equal(loss_weight(LEVELS, "eps"), torch.ones(5))
    torch.testing.assert_close(loss_weight(LEVELS, "v"), 1 + torch.exp(-LEVELS))
    torch.testing.assert_close(
        loss_weight(torch.tensor([-2.0, 2.0, 9.0]), "sigmoid", 2.0), torch.sigmoid(torch.tensor([4.0, 0.0, -7.0]))
    )


def test_a_bias_is_refused_where_nothing_reads_it(tiny):
    with pytest.raises(FieldError, match="loss_bias must be 0 with loss v, got 1"):
        tiny.config(loss="v", loss_bias=1.0)
    assert tiny.config(loss="sigmoid", loss_bias=-2.0).loss_bias == -2.0


def test_gradients_are_those_of_the_weighted_loss_and_the_reported_loss_is_that_of_eps(tiny):
    config, reports = tiny.config(num_steps=1, log_every=1), {}
    networks = {}
    for loss in ("eps", "v", "sigmoid"):
        hooks = Hooks(lambda report, loss=loss: reports.setdefault(loss, report), lambda state: None)
        networks[loss] = fit(replace(config, loss=loss), tiny.loader(config), tiny.provenance, hooks)
    assert reports["eps"].loss == reports["v"].loss == reports["sigmoid"].loss
    assert len({report.grad_norm for report in reports.values()}) == 3


def test_places_of_one_code_are_near_to_their_own_place_in_any_grid():
    fine, coarse = place_code(8, 32), place_code(4, 32)
    assert fine.shape == (64, 32)
    nearest = (fine @ coarse.T).argmax(1).reshape(8, 8)
    assert torch.equal(nearest, torch.arange(16).reshape(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1))
    torch.testing.assert_close(fine.square().sum(1), torch.full((64,), 16.0))


def gridded(tiny, **changes):
    """tiny with a grid of 2 x 2 tokens, of which tiny's encodings have 3: networks only."""
    config = tiny.config()
    return replace(config, denoiser=replace(config.denoiser, num_tokens=5, **changes))


def test_with_places_the_order_of_the_tokens_matters_and_without_it_does_not(tiny):
    for places in (False, True):
        network = initial_network(gridded(tiny, token_places=places)).eval()
        with torch.no_grad():  # layers that start at zero hide what they get
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        tokens = torch.randn((2, 1, 5, 8), generator=torch.Generator().manual_seed(2))
        z, level = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(3)), torch.zeros(2)

        def drawn(tokens, z=z, level=level, network=network):
            cond = Conditioning.of(tokens, torch.zeros(2, 1, 8))
            once = network(z, level, cond)
            torch.testing.assert_close(network(z, level, network.prepare(cond)), once)  # keys are computed once for all steps
            return once

        first, other = drawn(tokens), drawn(tokens[:, :, [0, 2, 1, 4, 3]])
        assert torch.allclose(first, other, atol=1e-5) is not places


@pytest.mark.parametrize(("changes", "problem"), [
    ({"num_tokens": 7, "token_places": True}, "token_places must be False for 7 tokens, which are no square grid"),
    ({"conditioning": "film", "token_places": True}, "token_places must be False without cross-attention"),
    ({"conditioning": "film", "standardised_tokens": True}, "standardised_tokens must be False without cross-attention"),
])  # fmt: skip
def test_what_has_no_meaning_is_refused(tiny, changes, problem):
    with pytest.raises(FieldError, match=problem):
        replace(tiny.config().denoiser, **changes)


def standardised(tiny, **changes):
    config = tiny.config(loss="v", **changes)
    return replace(config, denoiser=replace(config.denoiser, standardised_tokens=True))


def test_statistics_are_those_of_the_training_pictures(tiny):
    mean, std = tiny.loader(tiny.config()).token_statistics()
    folder = tiny.folder / "encodings"
    rows = [row for entry in read_manifest(folder, "encodings").shards() for row in token_rows(read_shard(folder, entry)["tokens"])]
    tokens = torch.cat([torch.from_numpy(row.reshape(-1, 8)).double() for row in rows])
    torch.testing.assert_close(mean.double(), tokens.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std.double(), tokens.std(0, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tiny.loader(tiny.config(), 1, 2).token_statistics(), (mean, std), rtol=0, atol=0)


def test_a_training_with_statistics_resumes_to_the_bit_and_keeps_them(tiny, tmp_path):
    config = standardised(tiny)

    def run(folder, start=None):
        hooks = Hooks(lambda report: None, lambda state: write_checkpoint(folder / str(state.step), state.snapshot()))
        return fit(config, tiny.loader(config), tiny.provenance, hooks, start=start)

    whole = run(tmp_path / "whole")
    run(tmp_path / "resumed", open_checkpoint(tmp_path / "whole" / "3"))
    for name in ("model", "ema", "optimizer"):
        first, second = (load_file(tmp_path / folder / "6" / f"{name}.safetensors") for folder in ("whole", "resumed"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    mean, std = tiny.loader(config).token_statistics()
    average = load_file(tmp_path / "whole" / "6" / "ema.safetensors")
    assert torch.equal(average["tokens.standard.mean"], mean)
    assert torch.equal(average["tokens.standard.std"], std)
    assert torch.equal(whole.tokens.standard.mean, mean)


def test_a_loader_without_statistics_is_refused_where_they_are_asked_for(tiny):
    class Bare:
        def batch(self, step):
            raise AssertionError

    with pytest.raises(FieldError, match="standardised_tokens must be False for a loader without token_statistics"):
        fit(standardised(tiny), Bare(), tiny.provenance, Hooks(lambda report: None, lambda state: None))

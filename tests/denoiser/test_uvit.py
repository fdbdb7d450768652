"""The U-ViT as a function: shapes, what it may and may not depend on, gradients, learning, saving."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from semantica.conditioning.signals import IMAGES
from semantica.conditioning.values import Conditioning
from semantica.denoiser.configs import DenoiserConfig, StageConfig
from semantica.denoiser.uvit import UViT
from semantica.errors import ConfigError, DataError
from tests.signals import changed

KINDS = ("cross_attention", "film", "both")
SMALL = DenoiserConfig(
    resolution_px=16,
    patch_px=2,
    stages=(
        StageConfig(channels=16, num_blocks=2, kind="conv"),
        StageConfig(channels=32, num_blocks=1, kind="transformer"),
        StageConfig(channels=32, num_blocks=2, kind="transformer"),
    ),
    conditioning="both",
    token_dim=12,
    num_tokens=5,
    pooled_dim=10,
    noise_embedding_dim=32,
    head_dim=16,
    norm_groups=4,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(num=4, seed=0, config=SMALL):
    side = config.resolution_px
    cond = Conditioning.of(
        normal(num, config.num_tokens, config.token_dim, seed=seed + 1), normal(num, config.pooled_dim, seed=seed + 2)
    )
    return normal(num, 3, side, side, seed=seed), torch.linspace(-8, 8, num), cond


def perturbed(config, seed=0):
    """A network in which no weight is zero, as after some training."""
    network = UViT(config, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


@pytest.mark.parametrize("patch_px", [1, 2])
@pytest.mark.parametrize("conditioning", KINDS)
def test_output_is_like_z_and_exactly_zero_at_the_start(conditioning, patch_px):
    network = UViT(replace(SMALL, conditioning=conditioning, patch_px=patch_px))
    z, logsnr, cond = inputs()
    out = network(z, logsnr, cond)
    assert out.shape == z.shape
    assert torch.equal(out, torch.zeros_like(z))


@pytest.mark.parametrize("conditioning", KINDS)
def test_null_rows_ignore_the_conditioning_bit_for_bit(conditioning):
    network = perturbed(replace(SMALL, conditioning=conditioning))
    z, logsnr, cond = inputs()
    _, _, other = inputs(seed=10)
    assert torch.equal(network(z, logsnr, cond.null()), network(z, logsnr, other.null()))


@pytest.mark.parametrize("conditioning", KINDS)
def test_conditional_rows_depend_on_what_their_kind_reads_and_on_nothing_else(conditioning):
    network = perturbed(replace(SMALL, conditioning=conditioning))
    z, logsnr, cond = inputs()
    _, _, other = inputs(seed=10)
    out = network(z, logsnr, cond)

    def differs(changed):
        return ((network(z, logsnr, changed) - out).abs().amax(dim=(1, 2, 3)) > 1e-3).tolist()

    assert differs(cond.null()) == [True] * 4
    assert differs(changed(cond, tokens=other.tokens)) == [conditioning != "film"] * 4
    assert differs(changed(cond, pooled=other.pooled)) == [conditioning != "cross_attention"] * 4
    assert differs(cond.dropped({IMAGES: torch.tensor([True, False, True, False])})) == [True, False, True, False]


def test_pooled_embedding_counts_by_direction_only():
    network = perturbed(replace(SMALL, conditioning="film"))
    z, logsnr, cond = inputs()
    torch.testing.assert_close(network(z, logsnr, changed(cond, pooled=7 * cond.pooled)), network(z, logsnr, cond))


def test_output_depends_on_the_noise_level():
    network = perturbed(SMALL)
    z, logsnr, cond = inputs()
    assert ((network(z, logsnr + 1, cond) - network(z, logsnr, cond)).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_rows_do_not_depend_on_each_other():
    """Row 0 has exactly no gradient in the other rows of anything, and is the same in another company."""
    network = perturbed(SMALL).double()
    z, logsnr, cond = inputs()
    leaves = [tensor.double().requires_grad_() for tensor in (z, logsnr, cond.tokens, cond.pooled)]
    z, logsnr, tokens, pooled = leaves
    out = network(z, logsnr, Conditioning.of(tokens, pooled))
    for gradient in torch.autograd.grad(out[0].square().sum(), leaves):
        assert gradient[0].abs().max() > 0
        assert gradient[1:].abs().max() == 0
    alone = network(z[:1], logsnr[:1], Conditioning.of(tokens[:1], pooled[:1]))
    torch.testing.assert_close(alone, out[:1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("null_rows", ["none", "some", "all"])
@pytest.mark.parametrize("conditioning", KINDS)
def test_every_parameter_is_in_every_graph(conditioning, null_rows):
    """What DistributedDataParallel asks for; and what is read has a gradient that is not zero."""
    network = perturbed(replace(SMALL, conditioning=conditioning))
    z, logsnr, cond = inputs()
    mask = {"none": [False] * 4, "some": [True, False] * 2, "all": [True] * 4}[null_rows]
    network(z, logsnr, cond.dropped({IMAGES: torch.tensor(mask)})).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        unread = name.endswith("null.vectors") and null_rows == "none"
        # Equal keys leave nothing to choose: where all rows are null, queries and keys of cross-attention have no effect.
        unread |= null_rows == "all" and any(part in name for part in ("cross_attention.norm", "cross_attention.query"))
        assert unread or parameter.grad.abs().max() > 0, name


def test_one_batch_overfits():
    """Eight pictures with fixed noise are learned: the error of v falls below a tenth of that of the zero output it starts as."""
    network = UViT(SMALL, torch.Generator().manual_seed(0))
    z, logsnr, cond = inputs(8)
    target = normal(8, 3, 16, 16, seed=5)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(100):
        loss = (network(z, logsnr, cond) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(target.square().mean().item())
    assert losses[-1] < 0.1 * losses[0]


def test_saved_and_loaded_weights_give_the_same_output_bit_for_bit(tmp_path):
    network, other = perturbed(SMALL), perturbed(SMALL, seed=7)
    z, logsnr, cond = inputs()
    assert not torch.equal(other(z, logsnr, cond), network(z, logsnr, cond))
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(other(z, logsnr, cond), network(z, logsnr, cond))


def test_weights_and_inputs_may_have_different_dtypes():
    """fp16 tokens as stored, float32 z; bfloat16 weights are near the float64 ones and answer in z's dtype."""
    network = perturbed(SMALL)
    z, logsnr, cond = inputs()
    half = changed(cond, tokens=cond.tokens.half(), pooled=cond.pooled.half())
    exact = copy.deepcopy(network).double()(z.double(), logsnr, half)
    assert exact.dtype == torch.float64
    coarse = copy.deepcopy(network).bfloat16()(z, logsnr, half)
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(network(z, logsnr, half).double(), exact, rtol=1e-3, atol=1e-3)
    assert (coarse - exact).square().mean() < 0.01 * exact.square().mean()


def test_channels_last_gives_the_same_output():
    network = perturbed(SMALL)
    z, logsnr, cond = inputs()
    expected = network(z, logsnr, cond)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(z.to(memory_format=torch.channels_last), logsnr, cond), expected, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_only():
    stages = (*SMALL.stages[:2], replace(SMALL.stages[2], dropout=0.5))
    network = perturbed(replace(SMALL, stages=stages))
    z, logsnr, cond = inputs()
    assert torch.equal(network(z, logsnr, cond), network(z, logsnr, cond))
    network.train()
    assert not torch.equal(network(z, logsnr, cond), network(z, logsnr, cond))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, c: (z[:, :, :8], c), r"z must have shape \(4, 3, 16, 16\), got \(4, 3, 8, 16\)"),
        (lambda z, c: (z, changed(c, tokens=c.tokens[..., :6])), r"tokens must have shape \(4, 1, 5, 12\), got \(4, 1, 5, 6\)"),
        (lambda z, c: (z, changed(c, tokens=c.tokens[:, :, 1:])), r"tokens must have shape \(4, 1, 5, 12\), got \(4, 1, 4, 12\)"),
        (lambda z, c: (z, changed(c, pooled=c.pooled[..., 1:])), r"pooled must have shape \(4, 1, 10\), got \(4, 1, 9\)"),
    ],
)
def test_a_wrong_shape_is_named_with_expected_and_got(change, message):
    z, logsnr, cond = inputs()
    z, cond = change(z, cond)
    with pytest.raises(DataError, match=message):
        UViT(SMALL)(z, logsnr, cond)


def test_film_needs_no_tokens():
    z, logsnr, cond = inputs()
    assert UViT(replace(SMALL, conditioning="film"))(z, logsnr, changed(cond, tokens=torch.empty(4, 1, 0, 0))).shape == z.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution_px": 20}, "resolution_px must be a multiple of 8"),
        ({"head_dim": 24}, r"stages\.1\.channels must be a multiple of head_dim 24, got 32"),
        ({"norm_groups": 3}, r"stages\.0\.channels must be a multiple of norm_groups 3, got 16"),
        ({"stages": ()}, "stages must be at least one stage"),
        ({"stages": SMALL.stages[:1]}, "conditioning must be film without a transformer stage"),
        ({"noise_embedding_dim": 7}, "noise_embedding_dim must be even"),
        ({"patch_px": 0}, "patch_px must be at least 1"),
    ],
)
def test_an_impossible_shape_is_refused_before_anything_is_built(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **changes)

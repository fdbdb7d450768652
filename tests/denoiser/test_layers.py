"""Patching, initialisation and the parts of the U-ViT that have closed forms."""

import copy

import pytest
import torch

from semantica.denoiser.layers import (
    Attention,
    ConvBlock,
    Film,
    MergeSkip,
    TransformerBlock,
    fourier_features,
    initialise,
    patchify,
    unpatchify,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(module, seed=0):
    """The module in float64 with every parameter, also those that start at zero, replaced by noise."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


@pytest.mark.parametrize("patch_px", [1, 2, 4])
def test_patchify_and_unpatchify_are_inverses(patch_px):
    x = normal(2, 3, 8, 8)
    patches = patchify(x, patch_px)
    assert patches.shape == (2, 3 * patch_px**2, 8 // patch_px, 8 // patch_px)
    assert torch.equal(unpatchify(patches, patch_px), x)
    assert torch.equal(patchify(unpatchify(patches, patch_px), patch_px), patches)


def test_a_patch_holds_the_pixels_of_its_square():
    x = normal(1, 3, 4, 4)
    assert set(patchify(x, 2)[0, :, 1, 0].tolist()) == set(x[0, :, 2:4, 0:2].flatten().tolist())


@pytest.mark.parametrize("make", [lambda: ConvBlock(32, 8, 4, 0.0), lambda: TransformerBlock(32, 8, 6, 16, 4, 0.0)])
def test_a_block_starts_as_the_identity(make):
    block = make().double()
    initialise(block, torch.Generator().manual_seed(0))
    h = normal(2, 32, 4, 4) if isinstance(block, ConvBlock) else normal(2, 16, 32)
    assert torch.equal(block(h, normal(2, 8), normal(2, 5, 6)), h)


def test_initial_weights_are_a_function_of_the_seed():
    def weights(seed):
        block = TransformerBlock(32, 8, 6, 16, 4, 0.0)
        initialise(block, torch.Generator().manual_seed(seed))
        return torch.cat([parameter.detach().flatten() for parameter in block.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_film_scales_and_shifts_maps_and_sequences_alike():
    film = seeded(Film(8, 6))
    h, embedding = normal(2, 6, 4, 4), normal(2, 8, seed=1)
    scale, shift = film.dense(embedding).chunk(2, dim=1)
    expected = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    torch.testing.assert_close(film(h, embedding), expected)
    as_sequence = film(h.flatten(2).transpose(1, 2), embedding)
    torch.testing.assert_close(as_sequence.transpose(1, 2).unflatten(2, (4, 4)), expected)


def test_merged_skips_keep_unit_variance():
    merge = MergeSkip(torch.nn.LayerNorm(512), torch.nn.LayerNorm(512)).double()
    merged = merge(5 * normal(4, 8, 512), 0.1 * normal(4, 8, 512, seed=1) + 3)
    assert merged.var().item() == pytest.approx(1, abs=0.05)
    assert merged.mean().item() == pytest.approx(0, abs=0.02)


def test_attention_ignores_the_scale_of_its_keys_and_the_order_of_its_context():
    """QK-norm bounds the logits: scaling the key weights changes nothing; a set, not a sequence, is attended to."""
    attention = seeded(Attention(32, 6, 16))
    h, context = normal(2, 7, 32), normal(2, 5, 6, seed=1)
    out = attention(h, context)
    torch.testing.assert_close(attention(h, context.flip(1)), out)
    scaled = copy.deepcopy(attention)
    with torch.no_grad():
        scaled.key_value.weight[:32] *= 100
    torch.testing.assert_close(scaled(h, context), out, rtol=1e-3, atol=1e-3)


def test_attention_to_equal_keys_is_their_value():
    """Why one null token is enough: the result does not depend on the query."""
    attention = seeded(Attention(32, 6, 16))
    token = normal(1, 1, 6)
    value = attention.key_value(token).chunk(2, dim=-1)[1]
    out = attention(normal(1, 7, 32), token.expand(1, 5, 6))
    torch.testing.assert_close(out, attention.out(value).expand(1, 7, 32))


def test_noise_levels_have_distinct_smooth_features():
    level = torch.linspace(-15, 15, 3001, dtype=torch.float64)
    features = fourier_features(level, 64)
    assert features.shape == (3001, 64)
    steps = features.diff(dim=0).norm(dim=1)
    assert steps.max() < 0.5  # 0.01 apart: 16 rad x 0.01 x sqrt(32) / 2 at most
    slowest = features[:, 32]
    assert (slowest.diff() > 0).sum() + (slowest.diff() < 0).sum() == 3000
    distances = torch.cdist(features[::50], features[::50]) + 10 * torch.eye(61, dtype=torch.float64)
    assert distances.min() > 1

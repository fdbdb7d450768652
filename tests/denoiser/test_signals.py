"""Several conditioning images, a wanted similarity, a conditioning that is prepared once: what each changes and what not."""

from dataclasses import replace

import pytest
import torch

from semantica.conditioning.signals import IMAGES, SIMILARITY
from semantica.conditioning.values import Conditioning
from semantica.denoiser.uvit import UViT
from semantica.errors import DataError
from tests.denoiser.test_uvit import KINDS, SMALL, inputs, normal, perturbed
from tests.signals import changed


def several(num_images, num=4, seed=0):
    """z, logsnr, and a conditioning on num_images images a row."""
    z, logsnr, _ = inputs(num, seed)
    shape = (num, num_images)
    return z, logsnr, Conditioning.of(normal(*shape, SMALL.num_tokens, SMALL.token_dim, seed=seed + 1), normal(*shape, 10, seed=9))


def without(cond, images):
    present = cond.present.clone()
    present[:, images] = False
    return changed(cond, present=present)


def differs(a, b):
    return ((a - b).abs().amax(dim=(1, 2, 3)) > 1e-3).tolist()


@pytest.mark.parametrize("conditioning", KINDS)
def test_every_image_counts_and_an_absent_one_does_not(conditioning):
    network = perturbed(replace(SMALL, conditioning=conditioning, max_images=3))
    z, logsnr, cond = several(3)
    out = network(z, logsnr, cond)
    for image in range(3):
        assert differs(network(z, logsnr, without(cond, image)), out) == [True] * 4
    _, _, other = several(3, seed=20)
    absent = without(cond, 1)
    swapped = changed(absent, tokens=absent.tokens.clone(), pooled=absent.pooled.clone())
    swapped.tokens[:, 1], swapped.pooled[:, 1] = other.tokens[:, 1], 7 * other.pooled[:, 1]
    assert torch.equal(network(z, logsnr, swapped), network(z, logsnr, absent))


@pytest.mark.parametrize("conditioning", KINDS)
def test_images_that_are_not_passed_are_absent_ones(conditioning):
    network = perturbed(replace(SMALL, conditioning=conditioning, max_images=3))
    z, logsnr, cond = several(3)
    fewer = Conditioning.of(cond.tokens[:, :1], cond.pooled[:, :1])
    assert torch.equal(network(z, logsnr, fewer), network(z, logsnr, without(cond, [1, 2])))


def test_the_place_of_an_image_is_learned():
    network = perturbed(replace(SMALL, max_images=2))
    z, logsnr, cond = several(2)
    other = changed(cond, tokens=cond.tokens.flip(1), pooled=cond.pooled.flip(1))
    assert differs(network(z, logsnr, other), network(z, logsnr, cond)) == [True] * 4
    with torch.no_grad():
        network.tokens.place.vectors.zero_()
        network.pooled.place.vectors.zero_()
    torch.testing.assert_close(network(z, logsnr, other), network(z, logsnr, cond), rtol=1e-4, atol=1e-5)


def test_more_images_than_the_network_takes_are_refused():
    z, logsnr, cond = several(2)
    with pytest.raises(DataError, match=r"at most 1 conditioning images \(max_images\), got 2"):
        UViT(SMALL)(z, logsnr, cond)


def test_the_paper_s_network_has_no_parameter_for_what_it_does_not_take():
    assert {name for name, _ in UViT(SMALL).named_parameters() if "place" in name or "similarity" in name} == set()


def test_a_similarity_counts_where_it_is_asked_for_and_has_a_gradient_only_there():
    network = perturbed(replace(SMALL, similarity=True))
    z, logsnr, cond = inputs()
    asked = changed(cond, similarity=torch.tensor([0.3, 0.6, 0.3, float("nan")]))
    out = network(z, logsnr, asked)
    assert out.isfinite().all()
    assert differs(out, network(z, logsnr, cond)) == [True, True, True, False]
    assert differs(out, network(z, logsnr, changed(asked, similarity=asked.similarity + 0.05))) == [True, True, True, False]
    out.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "similarity" in name:
            assert parameter.grad.abs().max() > 0, name


def test_a_network_that_takes_no_similarity_ignores_one():
    network = perturbed(SMALL)
    z, logsnr, cond = inputs()
    assert torch.equal(network(z, logsnr, changed(cond, similarity=torch.full((4,), 0.5))), network(z, logsnr, cond))


def test_null_conditioning_asks_for_no_similarity():
    network = perturbed(replace(SMALL, similarity=True))
    z, logsnr, cond = inputs()
    asked = changed(cond, similarity=torch.full((4,), 0.5))
    assert torch.equal(network(z, logsnr, asked.null()), network(z, logsnr, cond.null()))
    mask = torch.tensor([True, False] * 2)
    assert torch.equal(asked.dropped({IMAGES: mask, SIMILARITY: mask}).similarity.isnan(), mask)
    assert asked.dropped({IMAGES: mask, SIMILARITY: mask}).is_null.tolist() == mask.tolist()


@pytest.mark.parametrize("conditioning", KINDS)
def test_prepared_conditioning_gives_the_same_output_bit_for_bit(conditioning):
    network = perturbed(replace(SMALL, conditioning=conditioning, max_images=2, similarity=True))
    z, logsnr, cond = several(2)
    cond = changed(without(cond, 1), similarity=torch.tensor([0.1, 0.5, float("nan"), 0.9])).dropped(
        dict.fromkeys((IMAGES, SIMILARITY), torch.arange(4) == 0)
    )
    prepared = network.prepare(cond)
    for level in (logsnr, logsnr + 1):
        assert torch.equal(network(z, level, prepared), network(z, level, cond))


def test_both_branches_are_the_rows_and_then_their_null():
    _, _, cond = several(2)
    both = cond.and_null()
    assert len(both) == 8
    assert both.is_null.tolist() == [False] * 4 + [True] * 4
    assert torch.equal(both[:4].tokens, cond.tokens)
    assert both.similarity.isnan().all()


@pytest.mark.parametrize("conditioning", KINDS)
def test_activation_checkpointing_gives_the_same_gradients_bit_for_bit(conditioning):
    """With dropout on: the second run of a block draws the masks of the first."""
    stages = tuple(replace(stage, dropout=0.3) for stage in SMALL.stages)
    z, logsnr, cond = inputs()
    gradients = []
    for recomputed in (False, True):
        network = perturbed(replace(SMALL, conditioning=conditioning, stages=stages)).train()
        for stage in network.stages:
            stage.recomputed = recomputed
        torch.manual_seed(3)
        network(z, logsnr, cond).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

import lpips
import pytest
import torch
import torchvision

from semantica.errors import WeightsError
from semantica.metrics.perceptual import (
    ST_LPIPS_MEMBER,
    ShiftTolerantLpips,
    load_shift_tolerant_lpips,
    lpips_from_trunk,
    perceptual_distance,
)


def pictures(seed, num=4, px=64):
    """Smooth random pictures: noise would be outside of anything that the weights know."""
    coarse = torch.rand(num, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, px, mode="bicubic").clamp(0, 1) * 255).byte()


def test_st_lpips_is_zero_for_the_same_and_about_a_half_for_another_picture(weight_file):
    model = load_shift_tolerant_lpips(weight_file("stlpips-pytorch-0.0.2", ST_LPIPS_MEMBER))
    a, b = pictures(0), pictures(1)
    assert torch.equal(perceptual_distance(model, a, a), torch.zeros(4))
    other = perceptual_distance(model, a, b)
    assert ((other > 0.2) & (other < 1.0)).all()
    torch.testing.assert_close(perceptual_distance(model, b, a), other)


def test_st_lpips_grows_with_noise_and_hardly_with_a_shift_of_one_pixel(weight_file):
    model = load_shift_tolerant_lpips(weight_file("stlpips-pytorch-0.0.2", ST_LPIPS_MEMBER))
    wide = pictures(2, px=68)
    a, shifted = wide[..., 2:66, 2:66], wide[..., 2:66, 3:67]
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(3))
    noisy = [(a + scale * noise).clamp(0, 255).byte() for scale in (8, 32)]
    little, much = (perceptual_distance(model, a, b).mean() for b in noisy)
    assert perceptual_distance(model, a, shifted).mean() < little < much


def test_the_distance_is_the_sum_of_weighted_feature_differences():
    # One channel of weight in the first layer only, and that convolution reads the mean of the picture: everything else is zero.
    model = ShiftTolerantLpips()
    for conv in model.convs:
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    model.convs[0].bias.data[0] = 1.0
    model.convs[0].weight.data[1, :, 5, 5] = 1.0
    model.heads[0].data[0, :2] = torch.tensor([1.0, 3.0]).view(2, 1, 1)
    black, white = torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    # Features (1, 0) and (1, 3) inside; normalised (1, 0) and (1, 3)/√10.
    expected = (1 - 10**-0.5) ** 2 + 3 * 0.9
    # The centre tap reads pixels 3 to 60 only, never the zero padding, so every position gives the same.
    assert model(black, white).item() == pytest.approx(expected, rel=1e-5)


def test_lpips_from_a_local_trunk_equals_the_packages_own_module():
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="pretrained"):
        reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    trunk = torchvision.models.alexnet(weights=None).state_dict()
    for name in reference.net.state_dict():
        trunk[f"features.{name.split('.', 1)[1]}"] = reference.net.state_dict()[name]
    a, b = pictures(0), pictures(1)
    expected = reference(a / 127.5 - 1, b / 127.5 - 1).flatten()
    assert torch.equal(perceptual_distance(lpips_from_trunk(trunk), a, b), expected)


def test_a_trunk_of_another_network_is_refused():
    with pytest.raises(WeightsError, match=r"torchvision's AlexNet, got no features\.0\.bias"):
        lpips_from_trunk({"conv1.weight": torch.zeros(1)})

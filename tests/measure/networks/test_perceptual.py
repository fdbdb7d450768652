import warnings

import lpips
import pytest
import torch
import torchvision
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

from semantica.data.assets import ST_LPIPS
from semantica.errors import DataError, WeightsError
from semantica.measure.networks.extractors import perceptual_distance
from semantica.measure.networks.perceptual import (
    LPIPS_NETS,
    ShiftTolerantLpips,
    load_shift_tolerant_lpips,
    lpips_from_trunk,
)


def pictures(seed, num=4, px=64):
    """Smooth random pictures: noise would be outside of anything that the weights know."""
    coarse = torch.rand(num, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, px, mode="bicubic").clamp(0, 1) * 255).byte()


def test_st_lpips_is_zero_for_the_same_and_about_a_half_for_another_picture(weight_file):
    model = load_shift_tolerant_lpips(weight_file("stlpips-pytorch-0.0.2", ST_LPIPS.members[0]))
    a, b = pictures(0), pictures(1)
    assert torch.equal(perceptual_distance(model, a, a), torch.zeros(4))
    other = perceptual_distance(model, a, b)
    assert ((other > 0.2) & (other < 1.0)).all()
    torch.testing.assert_close(perceptual_distance(model, b, a), other)


def test_st_lpips_grows_with_noise_and_hardly_with_a_shift_of_one_pixel(weight_file):
    model = load_shift_tolerant_lpips(weight_file("stlpips-pytorch-0.0.2", ST_LPIPS.members[0]))
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


@pytest.fixture(scope="module", params=sorted(LPIPS_NETS))
def random_lpips(request):
    """(net, the package's own module on a random trunk, that trunk under torchvision's names)."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        reference = lpips.LPIPS(net=request.param, pnet_rand=True, verbose=False)
    return request.param, reference, {f"features.{n.split('.', 1)[1]}": v for n, v in reference.net.state_dict().items()}


def test_lpips_equals_the_packages_own_forward(random_lpips):
    net, reference, trunk = random_lpips
    a, b = pictures(0), pictures(1)
    expected = reference(a / 127.5 - 1, b / 127.5 - 1).flatten()
    assert (expected > 0).all()
    assert torch.equal(perceptual_distance(lpips_from_trunk(trunk, net), a, b), expected)


def test_the_names_of_a_trunk_are_torchvisions(random_lpips):
    net, _, trunk = random_lpips
    builders = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16, "squeeze": torchvision.models.squeezenet1_1}
    with torch.device("meta"):
        published = builders[net](weights=None).state_dict()
    assert {name: published[name].shape for name in trunk} == {name: value.shape for name, value in trunk.items()}


def test_a_picture_too_small_for_the_net_is_refused_and_the_least_size_is_not(random_lpips):
    net, reference, trunk = random_lpips
    model, least = lpips_from_trunk(trunk, net), LPIPS_NETS[net].min_px
    small, smaller = (torch.zeros(1, 3, px, px, dtype=torch.uint8) for px in (least, least - 1))
    assert perceptual_distance(model, small, small + 255).isfinite().all()
    with pytest.raises(DataError, match=f"at least {least} px per side for this net, got {least - 1}x{least - 1}"):
        perceptual_distance(model, smaller, smaller)
    with pytest.raises(RuntimeError):
        reference(smaller.float(), smaller.float())


def test_the_least_size_for_st_lpips_is_what_its_pools_need():
    model = ShiftTolerantLpips()
    least = model.min_px
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, least, least), torch.ones(1, 3, least, least)).isfinite().all()
        with pytest.raises(RuntimeError):
            model(torch.zeros(1, 3, least - 1, least - 1), torch.ones(1, 3, least - 1, least - 1))


def test_a_trunk_of_another_network_is_refused():
    with pytest.raises(WeightsError, match=r"expected the tensors of alexnet-owt-7be5be79\.pth, got no features\.0\.bias"):
        lpips_from_trunk({"conv1.weight": torch.zeros(1)})


def test_the_nets_have_names_hashes_and_files_of_their_own():
    trunks = [net.trunk for net in LPIPS_NETS.values()]
    for part in ("name", "sha256", "what", "url"):
        assert len({getattr(trunk, part) for trunk in trunks}) == len(trunks)
    for trunk in trunks:  # torchvision puts the first digits of the hash into the name
        assert trunk.name == f"{trunk.name.rsplit('-', 1)[0]}-{trunk.sha256[:8]}.pth"
    urls = {str(w.value.url) for e in (AlexNet_Weights, VGG16_Weights, SqueezeNet1_1_Weights) for w in e}
    assert {trunk.url for trunk in trunks} <= urls

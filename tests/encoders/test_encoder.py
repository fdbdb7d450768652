"""Loading: identity, what each file may say, and which folders are refused, in one line that names them."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Model

from semantica.data.location import file_sha256
from semantica.encoders.encoder import EncoderIdentity, load_encoder
from semantica.encoders.settings import EncoderConfig
from semantica.errors import ConfigError, DataError, WeightsError


@pytest.fixture
def folder(checkpoints):
    return checkpoints["dinov2"]


def load(path, px=56, **changes):
    return load_encoder(EncoderConfig(weights=str(path), image_px=px, **changes))


def refusal(path, px=56):
    with pytest.raises(WeightsError) as caught:
        load(path, px)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_the_identity_names_the_weights_and_the_preprocessing(folder):
    identity = load(folder).identity
    assert (identity.name, identity.image_px, identity.dtype, identity.family) == ("dinov2", 56, "float32", "dinov2")
    assert identity.weights_sha256 == file_sha256(folder / "model.safetensors")
    assert (identity.mean, identity.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (identity.num_tokens, identity.token_dim, identity.pooled_dim) == (4 * 4 + 1, 16, 16)
    assert EncoderIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity


@pytest.mark.parametrize(
    "changes", [{"resample": 2}, {"image_mean": [0.5, 0.5, 0.5]}, {"image_std": [0.5, 0.5, 0.5]}, {"size": {"shortest_edge": 80}}]
)
def test_another_preprocessing_is_another_identity_and_another_encoding(vision, folder, tmp_path, changes):
    plain, other = load(folder), load(vision.edited(folder, tmp_path / "dinov2", changes))
    assert plain.identity.weights_sha256 == other.identity.weights_sha256
    assert plain.identity != other.identity
    images = vision.batch_of([vision.drawn(0, 100)])
    assert not torch.equal(plain(images).pooled, other(images).pooled)


def test_weights_in_several_files_have_the_tokens_of_those_in_one_and_a_hash_of_all(vision, folder, tmp_path):
    path = tmp_path / "dinov2"
    shutil.copytree(folder, path)
    (path / "model.safetensors").unlink()
    Dinov2Model.from_pretrained(folder).save_pretrained(path, max_shard_size="8KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    images = vision.batch_of([vision.drawn(0, 100)])
    assert torch.equal(load(path)(images).tokens, load(folder)(images).tokens)
    first = load(path).identity.weights_sha256
    last = sorted(path.glob("*.safetensors"))[-1]
    save_file({name: value + 1 for name, value in load_file(last).items()}, last, metadata={"format": "pt"})
    assert load(path).identity.weights_sha256 != first


def test_a_hub_name_is_read_from_the_hubs_cache_with_its_own_preprocessing(vision, folder, tmp_path):
    """The layout that a download leaves; a process of its own, since the hub's client reads its settings when it is imported."""
    edited = vision.edited(folder, tmp_path / "edited", {"size": {"shortest_edge": 72}, "image_std": [0.3, 0.3, 0.3]})
    repository = tmp_path / "hub" / "models--someone--their-dinov2"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(edited, repository / "snapshots" / ("0" * 40))
    code = (
        "import json; from semantica.encoders.encoder import EncoderConfig, load_encoder; "
        "print(json.dumps(load_encoder(EncoderConfig(weights='someone/their-dinov2', image_px=56)).identity.to_dict()))"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    identity = json.loads(done.stdout)
    assert identity == load(edited).identity.to_dict() | {"name": "someone/their-dinov2"}
    assert (identity["resize_px"], identity["std"]) == (72, [0.3, 0.3, 0.3])


def test_a_folder_without_a_preprocessing_resizes_to_the_size_and_normalises_as_its_family(checkpoints, tmp_path):
    for kind, px, mean in (("dinov2", 56, 0.485), ("siglip", 64, 0.5)):
        path = shutil.copytree(checkpoints[kind], tmp_path / kind)
        (path / "preprocessor_config.json").unlink()
        identity = load(path, px).identity
        assert (identity.resize_px, identity.mean[0]) == (px, mean)


def test_a_processor_saved_with_a_tokenizer_is_read_from_its_own_file(vision, checkpoints, tmp_path):
    path = shutil.copytree(checkpoints["siglip"], tmp_path / "siglip")
    values = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").unlink()
    (path / "processor_config.json").write_text(json.dumps({"image_processor": values | {"image_mean": [0.25] * 3}}))
    assert load(path, 64).identity.mean == (0.25,) * 3


def test_the_encoder_is_frozen_and_in_eval_mode(folder):
    model = load(folder).model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_pictures_that_are_not_square_are_refused(folder):
    with pytest.raises(DataError, match=r"must be square, got 30x20; run semantica ingest"):
        load(folder)(torch.zeros(1, 3, 20, 30, dtype=torch.uint8))


def test_a_size_that_leaves_a_rest_of_pixels_is_refused(checkpoints):
    with pytest.raises(ConfigError, match=r"^image_px must be a multiple of the 16 px patch of .*, got 56"):
        load(checkpoints["siglip"], 56)
    with pytest.raises(ConfigError, match=r"^image_px must be a multiple of the 14 px patch of .*, got 64"):
        load(checkpoints["dinov2"], 64)


def test_a_pickle_is_never_opened(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "pickled")
    torch.save(Dinov2Model.from_pretrained(folder).state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    assert "no file named model.safetensors" in refusal(path)


def test_a_missing_folder_is_refused_in_one_line(tmp_path):
    assert "no folder" in refusal(tmp_path / "missing")


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data[:-4], lambda data: b"junk" * 100, lambda _: b""])
def test_damaged_weights_are_refused_in_one_line(folder, tmp_path, damage):
    path = shutil.copytree(folder, tmp_path / "damaged")
    weights = path / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    refusal(path)


def test_weights_with_a_layer_missing_are_refused(vision, folder, tmp_path):
    path = vision.edited(folder, tmp_path / "deeper", {"num_hidden_layers": 3}, "config.json")
    assert "not a whole DINOv2 checkpoint" in refusal(path)


def test_another_family_is_refused_by_its_name(vision, folder, tmp_path):
    path = vision.edited(folder, tmp_path / "other", {"model_type": "resnet"}, "config.json")
    assert "has model_type 'resnet'; expected one of dinov2, dinov2_with_registers, siglip, siglip2" in refusal(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", None])
def test_a_damaged_config_is_refused(folder, tmp_path, text):
    path = shutil.copytree(folder, tmp_path / "odd")
    (path / "config.json").unlink()
    if text is not None:
        (path / "config.json").write_text(text)
    assert "cannot load" in refusal(path)


def test_a_tower_without_a_pooling_head_is_refused(vision, checkpoints, tmp_path):
    path = vision.edited(checkpoints["siglip_tower"], tmp_path / "headless", {"vision_use_head": False}, "config.json")
    assert "has no attention-pooling head" in refusal(path, 64)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"image_mean": 3, "image_std": 1}', '{"image_mean": [0.5], "image_std": [0.5], "size": {"width": 3}}'],
)
def test_a_damaged_preprocessing_is_refused(folder, tmp_path, text):
    path = shutil.copytree(folder, tmp_path / "odd")
    (path / "preprocessor_config.json").write_text(text)
    assert "preprocessor_config.json must hold image_mean and image_std" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"resample": 1}, "resample"),
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type"),
        ({"do_normalize": False}, "do_normalize"),
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"do_pad": True}, "do_pad"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "image_mean"),
    ],
)
def test_a_preprocessing_that_is_not_done_here_is_refused_by_its_field(vision, folder, tmp_path, changes, field):
    path = vision.edited(folder, tmp_path / "odd", changes)
    assert f"preprocessor_config.json: {field} must be" in refusal(path)

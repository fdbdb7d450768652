"""The encoder from a local folder: tokens, pooled, preprocessing, and which folders are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from semantica.encoders.dinov2 import EncoderConfig, EncoderIdentity, load_encoder
from semantica.encoders.encode import EncodeConfig, decode_picture, encode_episodes, encode_pictures
from semantica.errors import DataError, WeightsError
from semantica.pairs.scores import pooled_rows
from semantica.schemas import encodings_schema
from semantica.storage import file_sha256

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A DINOv2 of 16 channels with random weights and a preprocessing of its own, as transformers saves it."""
    path = tmp_path_factory.mktemp("weights") / "dinov2-random"
    torch.manual_seed(0)
    settings = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2)
    Dinov2Model(settings).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(EncoderConfig(weights=str(folder), image_px=28))


def pictures(num, side=28, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (num, 3, side, side), np.uint8))


def test_the_identity_names_the_weights_and_the_preprocessing(folder, encoder):
    identity = encoder.identity
    assert (identity.name, identity.image_px, identity.dtype) == ("dinov2-random", 28, "float32")
    assert identity.weights_sha256 == file_sha256(folder / "model.safetensors")
    assert (identity.mean, identity.std) == (tuple(MEAN), tuple(STD))
    assert (identity.num_tokens, identity.token_dim, identity.pooled_dim) == (2 * 2 + 1, 16, 16)
    assert EncoderIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity


def test_tokens_are_the_last_hidden_state_and_pooled_is_its_first(folder, encoder):
    images = pictures(3)
    encoded = encoder(images)
    assert torch.equal(encoded.tokens[:, 0], encoded.pooled)
    x = (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(folder).eval()(pixel_values=x).last_hidden_state
    torch.testing.assert_close(encoded.tokens, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [20, 28, 64])
def test_pictures_are_resized_as_pillows_bicubic_does(encoder, side):
    image = Image.fromarray(pictures(1, side)[0].permute(1, 2, 0).numpy())
    smooth = image.resize((7, 7), Image.Resampling.BOX).resize((side, side), Image.Resampling.BICUBIC)
    resized = torch.from_numpy(np.array(smooth.resize((28, 28), Image.Resampling.BICUBIC))).permute(2, 0, 1)[None]
    seen = []
    handle = encoder.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    encoder(torch.from_numpy(np.array(smooth)).permute(2, 0, 1)[None])
    encoder(resized)
    handle.remove()
    # Pillow rounds to whole levels after each of its two passes: 1 level of 255, in units of the smallest std.
    assert (seen[0] - seen[1]).abs().max() <= 1 / 255 / min(STD) + 1e-4


def test_bfloat16_weights_give_nearly_the_same_direction(folder, encoder):
    coarse = load_encoder(EncoderConfig(weights=str(folder), image_px=28, dtype="bfloat16"))
    a, b = encoder(pictures(4)).pooled, coarse(pictures(4)).pooled
    assert b.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(a, b).min() > 0.999
    assert coarse.identity != encoder.identity


def test_the_encoder_is_frozen_and_in_eval_mode(encoder):
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_episodes_are_encoded_row_for_row_whatever_the_batch_size(make, encoder):
    table = make.episodes((3, 1, 0, 4, 2))
    results = [encode_episodes(table, encoder, EncodeConfig(batch_size=size)) for size in (1, 3, 4, 64)]
    flat = [bytes(i["bytes"]) for row in table["images"].to_pylist() for i in row]
    alone = torch.cat([encoder(decode_picture(data)[None]).tokens for data in flat]).numpy()
    for result in results:
        assert result.table.schema == encodings_schema(16, 5, 16)
        assert result.table.select(table.column_names).equals(table)
        assert result.num_images == 10
        rows = pooled_rows(result.table["pooled"])
        assert [len(r) for r in rows] == [3, 1, 0, 4, 2]
        tokens = np.concatenate([t.values.flatten().to_numpy(zero_copy_only=False) for t in result.table["tokens"]])
        assert tokens.dtype == np.float16
        # Another batch size may round a sum in another order (1e-5 here), which may turn one float16 into its neighbour.
        np.testing.assert_allclose(tokens.reshape(10, 5, 16).astype(np.float32), alone, rtol=2**-10, atol=2e-5)
        np.testing.assert_allclose(np.concatenate(rows), alone[:, 0], rtol=2**-10, atol=2e-5)


def test_the_pooled_sum_is_that_of_the_stored_values(make, encoder):
    result = encode_episodes(make.episodes((3, 2)), encoder, EncodeConfig())
    stored = np.concatenate(pooled_rows(result.table["pooled"])).astype(np.float64)
    np.testing.assert_array_equal(result.pooled_sum, stored.sum(0))


def test_without_tokens_the_pooled_embeddings_are_the_same(make, encoder):
    table = make.episodes((3, 2))
    lean, full = (encode_episodes(table, encoder, EncodeConfig(store_tokens=flag)).table for flag in (False, True))
    assert lean.schema == encodings_schema(16, None, None)
    assert lean["pooled"] == full["pooled"]


def test_no_picture_gives_no_row(make, encoder):
    encoded = encode_pictures([], encoder, 4)
    assert (encoded.tokens.shape, encoded.pooled.shape) == ((0, 5, 16), (0, 16))
    assert encode_episodes(make.episodes(()), encoder, EncodeConfig()).table.num_rows == 0


def test_bytes_that_are_no_picture_are_refused():
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_picture(b"GIF89a and nothing more")


def refusal(path):
    with pytest.raises(WeightsError) as caught:
        load_encoder(EncoderConfig(weights=str(path), image_px=28))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


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


def test_weights_with_a_layer_missing_are_refused(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "deeper")
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))
    assert "not a whole DINOv2 checkpoint" in refusal(path)


@pytest.mark.parametrize("text", ["{", "{}", '{"image_mean": 3, "image_std": 1}'])
def test_a_damaged_preprocessing_is_refused(folder, tmp_path, text):
    path = shutil.copytree(folder, tmp_path / "odd")
    (path / "preprocessor_config.json").write_text(text)
    assert "preprocessor_config.json must hold image_mean and image_std" in refusal(path)

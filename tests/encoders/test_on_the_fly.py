"""Tokens stored by encode and tokens computed when needed: the same training batches and conditions, bit for bit."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from semantica.config import to_dict
from semantica.data.dataset import StageOutput, read_manifest
from semantica.data.pictures import list_pictures
from semantica.encoders.encode import encode_pictures
from semantica.encoders.encoder import OtherEncoderError, load_encoder
from semantica.encoders.on_the_fly import TokensOnTheFly, tokens_on_the_fly
from semantica.encoders.settings import EncodeConfig, EncoderConfig
from semantica.encoders.shard import encode_shard
from semantica.encoders.totals import finish_encodings, shards_of
from semantica.errors import WeightsError
from semantica.generation.conditions import Conditions
from semantica.pairs.loader import Batches, PairLoader, open_pairs

CASES = [("dinov2", "float32"), ("dinov2", "bfloat16"), ("siglip", "float32"), ("siglip", "bfloat16"), ("siglip2", "float32")]


def encodings(make, folder, weights, dtype, *, store_tokens):
    """Episodes, their encodings, scores and selection in one folder, as the stages make them."""
    episodes = StageOutput(folder / "episodes", "episodes", {}, {})
    assert episodes.open() is None
    for index, sizes in enumerate(((4, 3, 2, 5, 3, 4), (2, 4, 1, 3, 5, 3))):
        tables = {
            "": make.episodes(sizes, side=64, first=100 * index),
            "held_out": make.episodes((3, 2), side=64, first=500 + 10 * index),
        }
        stats = {"num_train_images": sum(sizes), "num_held_out_images": 5}
        episodes.write_shard(f"part-{index:05d}", tables, stats, 2)
    source = episodes.finish({"num_train_images": 39, "num_held_out_images": 10}, {"pictures": []})
    image_px = 64 if weights.name.startswith("siglip") else 56
    encoder_config = EncoderConfig(weights=str(weights), image_px=image_px, dtype=dtype)
    settings = EncodeConfig(encoder=encoder_config, store_tokens=store_tokens, batch_size=8, rows_per_group=2)
    stage = StageOutput(folder / "encodings", "encodings", to_dict(settings), {"episodes": source.hash})
    assert stage.open() is None
    encoder = load_encoder(settings.encoder)
    for shard in shards_of(source, ("", "held_out")):
        encode_shard(stage, folder / "episodes", shard, encoder, settings)
    finish_encodings(stage, source, 0.0)
    make.scores(folder / "scores", folder / "encodings")
    make.selection(folder / "selection", folder / "scores", low=-1.0, high=1.0)
    return folder


def loader(folder):
    manifest = read_manifest(folder / "encodings", "encodings")
    batches = Batches(seed=0, batch_size=8, num_lanes=4, resolution_px=16, window_groups=1)
    return PairLoader(open_pairs(folder / "encodings", folder / "selection"), batches, tokens_of=tokens_on_the_fly(manifest))


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_training_batches_are_identical_in_both_modes(make, checkpoints, tmp_path, kind, dtype):
    stored, lean = (
        encodings(make, tmp_path / name, checkpoints[kind], dtype, store_tokens=name == "stored") for name in ("stored", "lean")
    )
    sizes = [sum(f.stat().st_size for f in folder.glob("encodings/*.parquet")) for folder in (stored, lean)]
    assert sizes[1] < sizes[0]
    first, second = loader(stored), loader(lean)
    seen = set()
    for step in range(12):
        a, b = first.batch(step), second.batch(step)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.cond.tokens, b.cond.tokens)
        assert torch.equal(a.cond.pooled, b.cond.pooled)
        assert b.cond.tokens.dtype == torch.float32
        assert not b.cond.tokens.is_inference()  # which may not take part in training
        seen |= {tuple(row) for row in b.cond.tokens[:, 0, 0].tolist()}
    assert len(seen) > 15


@pytest.mark.parametrize(("kind", "dtype"), CASES[:3])
def test_conditions_of_samples_are_identical_in_both_modes(make, checkpoints, tmp_path, kind, dtype):
    found = []
    for name in ("stored", "lean"):
        folder = encodings(make, tmp_path / name, checkpoints[kind], dtype, store_tokens=name == "stored") / "encodings"
        places = list_pictures(folder)
        conditions = Conditions(folder, tokens_on_the_fly(read_manifest(folder, "encodings")))
        wanted = [places[i] for i in (7, 0, 3, 7, 9)]
        found.append((places, conditions.read(wanted)))
    (places, a), (others, b) = found
    assert places == others
    assert len(places) == 10
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.pooled, b.pooled)
    assert torch.equal(a.tokens[0], a.tokens[3])
    assert not torch.equal(a.tokens[0], a.tokens[1])


def test_tokens_are_rounded_as_the_file_rounds_them(make, checkpoints, tmp_path):
    folder = encodings(make, tmp_path / "lean", checkpoints["dinov2"], "float32", store_tokens=False) / "encodings"
    picture = make.picture(3, 64)
    tokens = TokensOnTheFly(read_manifest(folder, "encodings"))([picture, make.picture(4, 64)])
    assert torch.equal(tokens, tokens.half().float())
    exact = encode_pictures([picture], load_encoder(EncoderConfig(weights=str(checkpoints["dinov2"]), image_px=56)), 8).tokens[0]
    np.testing.assert_array_equal(tokens[0].numpy(), exact.numpy().astype(np.float16).astype(np.float32))
    assert not torch.equal(tokens[0], exact)


@pytest.mark.parametrize(("changed", "field"), [("model.safetensors", "weights_sha256"), ("preprocessor_config.json", "resize_px")])
def test_an_encoder_that_is_no_longer_the_one_of_the_manifest_is_refused(vision, make, checkpoints, tmp_path, changed, field):
    weights = shutil.copytree(checkpoints["dinov2"], tmp_path / "weights")
    folder = encodings(make, tmp_path / "lean", weights, "float32", store_tokens=False) / "encodings"
    if changed == "model.safetensors":
        tensors = {name: value + 0.01 for name, value in load_file(weights / changed).items()}
        save_file(tensors, weights / changed, metadata={"format": "pt"})
    else:
        shutil.copy(vision.edited(weights, tmp_path / "odd", {"size": {"shortest_edge": 80}}) / changed, weights / changed)
    with pytest.raises(OtherEncoderError, match=f"is not the encoder .* that made the encodings: {field} must be"):
        TokensOnTheFly(read_manifest(folder, "encodings"))([make.picture(0)])


def test_the_same_encoder_may_lie_in_a_folder_of_another_name(make, checkpoints, tmp_path):
    weights = shutil.copytree(checkpoints["dinov2"], tmp_path / "weights")
    folder = encodings(make, tmp_path / "lean", weights, "float32", store_tokens=False) / "encodings"
    manifest, picture = read_manifest(folder, "encodings"), make.picture(0)
    expected = TokensOnTheFly(manifest)([picture])
    moved = weights.rename(tmp_path / "elsewhere")
    tokens_of = tokens_on_the_fly(manifest, weights=str(moved))
    assert torch.equal(tokens_of([picture]), expected)
    assert manifest.facts["encoder"]["name"] != load_encoder(tokens_of.settings.encoder).identity.name
    with pytest.raises(WeightsError):
        TokensOnTheFly(manifest)([picture])


def test_stored_tokens_need_no_encoder(make, checkpoints, tmp_path):
    folder = encodings(make, tmp_path / "stored", checkpoints["dinov2"], "float32", store_tokens=True) / "encodings"
    assert tokens_on_the_fly(read_manifest(folder, "encodings")) is None

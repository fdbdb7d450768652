"""Every family against transformers itself: the processor's pixel values, and the model's outputs on them."""

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor

from semantica.encoders.encoder import load_encoder
from semantica.encoders.settings import EncoderConfig

KINDS = ("dinov2", "registers", "siglip", "siglip_tower", "siglip2", "siglip2_tower")
NATIVE_PX = {kind: 64 if kind.startswith("siglip") else 56 for kind in KINDS}
OTHER_PX = {kind: 96 if kind.startswith("siglip") else 28 for kind in KINDS}
CASES = [(kind, px) for kind in KINDS for px in (NATIVE_PX[kind], OTHER_PX[kind])]
STORED_PX = (48, 64, 100)  # smaller than, as large as, and larger than what the processors resize to


def published(kind, px, folder, images, backend):
    """What transformers' own processor makes of the pictures when it is asked for this size."""
    processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    sizes = {
        "dinov2": {"size": {"shortest_edge": round(64 * px / 56)}, "crop_size": {"height": px, "width": px}},
        "siglip": {"size": {"height": px, "width": px}},
        "siglip2": {"max_num_patches": (px // 16) ** 2},
    }
    family = "dinov2" if kind == "registers" else kind.removesuffix("_tower")
    return processor(images, return_tensors="pt", **({} if px == NATIVE_PX[kind] else sizes[family]))


def seen_by(encoder, images):
    """The pixel values that the model is given."""
    seen = []
    handle = encoder.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    encoder(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(("kind", "px"), CASES)
@pytest.mark.parametrize("side", STORED_PX)
def test_pixel_values_are_those_of_the_published_processor_to_the_last_bit(vision, checkpoints, kind, px, side):
    images = [vision.drawn(seed, side) for seed in range(4)]
    got = seen_by(load_encoder(EncoderConfig(weights=str(checkpoints[kind]), image_px=px)), vision.batch_of(images))
    assert torch.equal(got, published(kind, px, checkpoints[kind], images, "torchvision")["pixel_values"])


@pytest.mark.parametrize(("kind", "px"), CASES)
def test_pixel_values_are_within_a_level_of_the_processor_that_resizes_by_pillow(vision, checkpoints, kind, px):
    images = [vision.drawn(seed, 100) for seed in range(4)]
    encoder = load_encoder(EncoderConfig(weights=str(checkpoints[kind]), image_px=px))
    expected = published(kind, px, checkpoints[kind], images, "pil")["pixel_values"]
    difference = (seen_by(encoder, vision.batch_of(images)) - torch.as_tensor(np.asarray(expected))).abs()
    # Both round to whole levels; the few values beside a rounding edge become the next one of 255. 1e-5: float32 in another order.
    assert difference.max() <= 1 / 255 / min(encoder.identity.std) + 1e-5
    assert (difference > 1e-5).float().mean() < 0.02


@pytest.mark.parametrize(("kind", "px"), CASES)
def test_tokens_and_pooled_are_the_outputs_of_the_model_on_the_processors_values(vision, checkpoints, kind, px):
    images = [vision.drawn(seed, 100) for seed in range(3)]
    encoded = load_encoder(EncoderConfig(weights=str(checkpoints[kind]), image_px=px))(vision.batch_of(images))
    model = vision.vision_class(kind).from_pretrained(checkpoints[kind]).eval()
    resized = {"interpolate_pos_encoding": True} if kind.removesuffix("_tower") == "siglip" and px != NATIVE_PX[kind] else {}
    with torch.no_grad():
        output = model(**published(kind, px, checkpoints[kind], images, "torchvision"), **resized)
    tokens = output.last_hidden_state
    if kind == "registers":
        assert tokens.shape[1] == 1 + 4 + (px // 14) ** 2
        tokens = torch.cat([tokens[:, :1], tokens[:, 5:]], dim=1)
    torch.testing.assert_close(encoded.tokens, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoded.pooled, output.pooler_output, atol=1e-5, rtol=1e-5)
    assert tokens.std() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_gives_the_shapes_and_the_preprocessing(vision, checkpoints, kind):
    for px in (NATIVE_PX[kind], OTHER_PX[kind]):
        encoder = load_encoder(EncoderConfig(weights=str(checkpoints[kind]), image_px=px))
        encoded, identity = encoder(vision.batch_of([vision.drawn(0, 48)])), encoder.identity
        assert encoded.tokens.shape == (1, identity.num_tokens, identity.token_dim)
        assert encoded.pooled.shape == (1, identity.pooled_dim)
        dino = kind in ("dinov2", "registers")
        assert identity.num_tokens == (1 + (px // 14) ** 2 if dino else (px // 16) ** 2)
        assert identity.resize_px == (round(64 * px / 56) if dino else px)
        assert identity.resample == ("bilinear" if kind.startswith("siglip2") else "bicubic")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_has_the_same_encoding_wherever_it_stands_in_a_batch(vision, checkpoints, kind, dtype):
    """What makes tokens computed during training those that encode stores: no bit depends on place or neighbours."""
    encoder = load_encoder(EncoderConfig(weights=str(checkpoints[kind]), image_px=NATIVE_PX[kind], dtype=dtype))
    images = vision.batch_of([vision.drawn(seed, 64) for seed in range(16)])
    first = encoder(images)
    for seed in range(3):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        again = encoder(images[order])
        assert torch.equal(again.tokens, first.tokens[order])
        assert torch.equal(again.pooled, first.pooled[order])
    alone = torch.cat([images[3:4]] * 16)
    assert torch.equal(encoder(alone).tokens[7], first.tokens[3])


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_weights_give_nearly_the_same_direction(vision, checkpoints, kind):
    fine, coarse = (
        load_encoder(EncoderConfig(weights=str(checkpoints[kind]), image_px=OTHER_PX[kind], dtype=dtype))
        for dtype in ("float32", "bfloat16")
    )
    images = vision.batch_of([vision.drawn(seed, 64) for seed in range(4)])
    a, b = fine(images), coarse(images)
    assert b.tokens.dtype == b.pooled.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(a.pooled, b.pooled).min() > 0.999
    assert coarse.identity != fine.identity


@pytest.mark.slow
def test_the_compiled_encoder_agrees_with_the_plain_one(vision, checkpoints):
    settings = {"weights": str(checkpoints["dinov2"]), "image_px": 56}
    plain, compiled = load_encoder(EncoderConfig(**settings)), load_encoder(EncoderConfig(**settings, compile=True))
    images = vision.batch_of([vision.drawn(seed, 64) for seed in range(4)])
    torch.testing.assert_close(compiled(images).tokens, plain(images).tokens, atol=1e-4, rtol=1e-4)
    assert compiled.identity == plain.identity

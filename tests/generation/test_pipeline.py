"""Pictures in, pictures out: what a user gets of a loaded model, and what it is told when it asks for something else."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import semantica
from semantica.data.dataset import read_manifest, read_shard
from semantica.data.schemas import token_rows
from semantica.diffusion.settings import SamplerConfig
from semantica.encoders.encode import encode_pictures
from semantica.encoders.encoder import load_encoder
from semantica.episodes.images import ImageConfig, normalise
from semantica.errors import ConfigError, DataError, WeightsError
from semantica.generation.conditioning_images import ConditioningImages, square_of
from semantica.generation.generate import sample_pictures
from semantica.generation.settings import GenerateConfig
from semantica.pairs.scores import pooled_rows
from tests.generation.drawing import draw, pixels


@pytest.fixture(scope="module")
def rich(runs):
    return semantica.load(runs.rich.checkpoint, "cpu", runs.rich.encoder)


def nearly_equal(first, second):
    """Another batch size sums in another order; a value beside a rounding edge may become the next level."""
    return np.abs(first - second).max() <= 1 and (first != second).mean() < 0.01


def test_one_picture_gives_a_list_and_a_list_gives_lists(model, pictures):
    one, two = draw(model, pictures[0]), draw(model, pictures[:2], num_samples=3)
    assert [picture.size for picture in one] == [(16, 16)] * 2
    assert [len(drawn) for drawn in two] == [3, 3]
    assert model([]) == []


def test_a_path_a_text_and_a_pil_picture_are_one_picture(model, pictures, tmp_path):
    path = tmp_path / "picture.png"
    pictures[1].save(path)
    first = pixels(draw(model, pictures[1]))
    assert np.array_equal(pixels(draw(model, path)), first)
    assert np.array_equal(pixels(draw(model, str(path))), first)


def test_more_samples_begin_with_the_fewer_and_a_picture_draws_the_same_alone_and_among_others(model, pictures):
    four = pixels(draw(model, pictures[0], num_samples=4))
    assert nearly_equal(pixels(draw(model, pictures[0], num_samples=2)), four[:2])
    among = draw(model, [pictures[2], pictures[0], pictures[1]], num_samples=4)
    assert nearly_equal(pixels(among[1]), four)
    assert len({picture.tobytes() for picture in [*among[0], *among[1], *among[2]]}) == 12


def test_two_equal_pictures_draw_the_same(model, pictures):
    first, second = draw(model, [pictures[0], pictures[0].copy()])
    assert nearly_equal(pixels(first), pixels(second))


def test_what_is_drawn_is_what_generate_draws_of_the_stored_encodings(runs, model, pictures):
    asked = model.asked([[picture] for picture in pictures], 2)
    config = GenerateConfig(sampler=SamplerConfig(num_steps=6), seed=5)
    expected = sample_pictures(model.model, asked.cond, asked.names, 0.7, config)
    drawn = np.concatenate([pixels(drawn) for drawn in draw(model, pictures, guidance=0.7, seed=5)])
    assert np.array_equal(drawn, expected.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("picture_px", [None, 40])
def test_a_stored_picture_given_back_is_conditioned_on_as_encode_did(runs, picture_px):
    """Bit for bit, whether or not the size of stored pictures is known; the encodings were made in batches of one, as here."""
    folder = runs.plain.folder / "encodings"
    table = read_shard(folder, read_manifest(folder, "encodings").shards()[0])
    rows = zip(table["images"].to_pylist(), pooled_rows(table["pooled"]), token_rows(table["tokens"]), strict=True)
    conditioning = ConditioningImages(load_encoder(runs.plain.settings.encoder), 1, picture_px)
    compared = 0
    for images, pooled, tokens in rows:
        given = [[Image.open(io.BytesIO(image["bytes"]))] for image in images]
        cond, _ = conditioning(given)
        assert np.array_equal(cond.pooled[:, 0].numpy(), np.asarray(pooled, np.float32))
        assert np.array_equal(cond.tokens[:, 0].flatten(1).numpy(), tokens.astype(np.float32))
        compared += len(given)
    assert compared == 20


def test_encodings_of_larger_batches_agree_to_a_level_of_float16(runs, model, pictures):
    whole = encode_pictures(runs.plain.pictures[:4], model.conditioning.encoder, 4)
    cond, _ = model.conditioning([[picture] for picture in pictures])
    torch.testing.assert_close(cond.tokens[:, 0], whole.tokens, rtol=2**-10, atol=2**-14)
    assert (cond.tokens[:, 0] != whole.tokens.half().float()).float().mean() < 0.01


def odd_pictures(folder):
    """Files of the kinds that ingest puts right: turned, transparent, of inks, of another colour space, wide grey, oblong."""
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 256, (6, 9, 3), np.uint8)).resize((120, 80), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth.save(folder / "turned.png", exif=exif)
    clear = smooth.convert("RGBA")
    clear.putalpha(smooth.convert("L"))
    clear.save(folder / "clear.png")
    clear.save(folder / "clear.webp", lossless=True)
    smooth.convert("P").save(folder / "palette.gif")
    smooth.convert("CMYK").save(folder / "inks.tif")
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    smooth.save(folder / "profile.jpg", icc_profile=lab, quality=95, exif=exif)
    wide = Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16) * 257)
    wide.save(folder / "wide.png")
    return sorted(folder.iterdir())


def test_pictures_are_prepared_as_ingest_does(tmp_path):
    paths = odd_pictures(tmp_path)
    assert len(paths) == 7
    for path in paths:
        stored = normalise(path.read_bytes(), ImageConfig(image_px=40)).pixels
        assert np.array_equal(square_of(path, 40).permute(1, 2, 0).numpy(), np.asarray(stored)), path
        with Image.open(path) as opened:
            assert torch.equal(square_of(opened, 40), square_of(path, 40)), path
        assert torch.equal(square_of(path, None), square_of(path, 80)), path  # of 120 x 80 px: cut, not resized


def test_a_small_or_long_picture_is_taken_since_a_user_chose_it(model):
    assert len(draw(model, Image.new("RGB", (300, 3), "red"), num_samples=1)) == 1


def test_seed_guidance_sampler_and_steps_are_those_asked_for(model, pictures):
    base = pixels(draw(model, pictures[0]))
    assert np.array_equal(pixels(draw(model, pictures[0], sampler="ddpm", seed=0, guidance=0.5)), base)
    for change in ({"seed": 1}, {"guidance": 0}, {"sampler": "ddim"}, {"num_steps": 7}):
        assert not np.array_equal(pixels(draw(model, pictures[0], **change)), base), change
    solver = SamplerConfig(name="dpm_solver", num_steps=6)
    assert np.array_equal(
        pixels(draw(model, pictures[0], sampler="dpm_solver")), pixels(model(pictures[0], 0.5, 2, sampler=solver))
    )
    assert model.release.sampler == SamplerConfig()  # the paper's, for a checkpoint that says nothing else


def test_a_callback_is_told_which_samples_it_gets_and_decides_how_they_go_on(model, pictures):
    """Six samples of three pictures: those of the second become what they would have from z = 0 at the last step."""
    seen = []

    def erase_the_second(step):
        seen.append((step.index, [(k // 2, k % 2) for k in step.samples], step.names))
        second = torch.tensor([k // 2 == 1 for k in step.samples])
        return torch.where(second[:, None, None, None], 0, step.z)

    plain, edited = draw(model, pictures[:3]), draw(model, pictures[:3], callback=erase_the_second)
    assert [np.array_equal(pixels(a), pixels(b)) for a, b in zip(plain, edited, strict=True)] == [True, False, True]
    assert np.array_equal(*pixels(edited[1]))
    assert [index for index, *_ in seen] == [0, 1, 2, 3, 4]
    assert seen[0][1:] == ([(i, j) for i in range(3) for j in range(2)], tuple(model.asked([[p] for p in pictures[:3]], 2).names))


def test_several_conditioning_images_describe_one_picture(rich, pictures):
    a, b, c = pictures[:3]
    cond, names = rich.conditioning([[a], [a, b], [a, b, c]])
    assert cond.present.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert torch.equal(cond.tokens[1, 0], cond.tokens[0, 0])
    assert len(set(names)) == 3
    first, second, third = draw(rich, [a, [a, b], (a, b, c)])
    assert nearly_equal(pixels(draw(rich, [[a, b]])[0]), pixels(second))
    assert not nearly_equal(pixels(first), pixels(third))


def test_a_model_that_was_told_similarities_is_asked_for_one(rich, pictures):
    near, far, any_at_all = (pixels(draw(rich, pictures[0], similarity=s)) for s in (1, 0.0, None))
    assert not np.array_equal(near, far)
    assert not np.array_equal(near, any_at_all)
    assert rich.asked([[pictures[0]]], 2, 0.25).cond.similarity.tolist() == [0.25, 0.25]
    assert rich.asked([[pictures[0]]], 1).cond.similarity.isnan().all()


@pytest.mark.parametrize(
    ("images", "asked", "error", "message"),
    [
        (3, {}, DataError, "images: expected a PIL picture, a path, or a list of these, got int"),
        ([3], {}, DataError, "images: expected a PIL picture or a path, got int"),
        ("nowhere.png", {}, DataError, "images: nowhere.png cannot be read"),
        (Path(__file__), {}, DataError, "test_pipeline.py is not a usable picture: not_an_image"),
        ([["a", "b"]], {}, DataError, "takes 1 to 1 conditioning images for a picture, got 2; pass a flat list"),
        ([[]], {}, DataError, "takes 1 to 1 conditioning images for a picture, got 0"),
        ([], {"guidance": -0.1}, ConfigError, "guidance must be 0 or more, got -0.1"),
        ([], {"guidance": float("nan")}, ConfigError, "guidance must be 0 or more, got nan"),
        ([], {"num_samples": 0}, ConfigError, "num_samples must be at least 1, got 0"),
        ([], {"similarity": 0.5}, ConfigError, "similarity: this model was not trained to be told one"),
        ([], {"sampler": "euler"}, ConfigError, "sampler: name must be one of ddpm, ddim, dpm_solver, got 'euler'"),
        ([], {"num_steps": 0}, ConfigError, "sampler: num_steps must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_sentence(model, images, asked, error, message):
    with pytest.raises(error) as caught:
        model(images, **asked)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_similarity_that_is_no_cosine_is_refused(rich):
    with pytest.raises(ConfigError, match="similarity must be a cosine"):
        rich([], similarity=1.5)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    with pytest.raises(DataError, match="1 to 50000000 pixels, got 8000x8000"):
        square_of(Image.new("1", (8000, 8000)), 40)
    Image.new("1", (8000, 8000)).save(tmp_path / "large.png")
    with pytest.raises(DataError, match=r"large.png is not a usable picture: too_many_pixels"):
        square_of(tmp_path / "large.png", 40)


def test_a_checkpoint_the_output_of_train_and_a_release_are_the_same_model(runs, model, pictures, tmp_path):
    expected = pixels(draw(model, pictures[0]))
    for path in (runs.plain.checkpoint / "model", str(runs.plain.checkpoint), model.save_pretrained(tmp_path / "released")):
        assert np.array_equal(pixels(draw(semantica.load(path, "cpu", runs.plain.encoder), pictures[0])), expected)


def test_the_size_of_stored_pictures_may_be_given(runs, pictures):
    told = semantica.load(runs.plain.checkpoint, "cpu", runs.plain.encoder, picture_px=40)
    assert (told.release.picture_px, told.conditioning.picture_px) == (40, 40)


def test_what_is_neither_a_folder_nor_a_hub_name_is_refused():
    with pytest.raises(WeightsError, match="load: no folder /no/such/place; give a released model, a checkpoint"):
        semantica.load("/no/such/place")

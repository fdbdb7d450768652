"""The golden set of pictures that the web really serves, built here, against `images.decode` and `images.normalise`."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from semantica.config import from_dict
from semantica.episodes.colour import to_srgb
from semantica.episodes.decoder import Decoder
from semantica.episodes.images import ImageConfig, decode, normalise
from semantica.episodes.quarantine import Reason, Refused
from semantica.errors import ConfigError

SMALL = ImageConfig(image_px=32, min_side_px=8)
UNDO = {  # EXIF orientation -> the transposition that a camera with this orientation has applied
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def quarters(width=32, height=48):
    """Four quarters of different colours: no two of the eight orientations look alike."""
    image = Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((30, 200, 30), (width // 2, 0, width, height // 2))
    image.paste((30, 30, 200), (0, height // 2, width // 2, height))
    image.paste((220, 220, 40), (width // 2, height // 2, width, height))
    return image


def pixels(data, settings=SMALL):
    decoded = decode(data, settings)
    return np.asarray(to_srgb(decoded.picture, decoded.profile)).astype(int)


def png(width, height, rows=b"", *extra):
    """A PNG whose header claims a size, of these rows of pixels, with extra chunks (kind, body)."""
    chunks = b"\x89PNG\r\n\x1a\n"
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    for kind, body in (head, *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return chunks


def webp_header(width, height):
    """A WebP of the extended kind whose header claims a size, with a small picture."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<II", 10, 0) + canvas + encoded(quarters(), "WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def jpeg_header(width, height):
    """A JPEG whose frame header claims a size."""
    data = bytearray(encoded(quarters(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def reason_of(data, settings=SMALL):
    with pytest.raises(Refused) as caught:
        normalise(data, settings)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_every_exif_orientation_comes_out_upright(orientation, format):
    upright = quarters()
    stored = upright if UNDO[orientation] is None else upright.transpose(UNDO[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    decoded = decode(encoded(stored, format, exif=exif, **options), SMALL)
    assert (decoded.width, decoded.height) == upright.size == decoded.picture.size
    wrong = np.abs(np.asarray(decoded.picture).astype(int) - np.asarray(upright).astype(int))
    assert wrong.mean() < 4 if format == "JPEG" else wrong.max() == 0


def test_a_large_jpeg_is_decoded_at_reduced_scale_and_keeps_its_full_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encoded(quarters(800, 1200), "JPEG", exif=exif), SMALL)
    assert (decoded.width, decoded.height) == (1200, 800)
    assert 64 <= min(decoded.picture.size) < 800


def test_transparency_is_laid_over_white_in_every_mode():
    rgba = quarters().convert("RGBA")
    rgba.paste((0, 0, 0, 0), (0, 0, 16, 24))
    palette = rgba.convert("RGB").quantize(8)
    files = {
        "RGBA": encoded(rgba),
        "LA": encoded(rgba.convert("LA")),
        "palette PNG": encoded(palette, transparency=palette.getpixel((2, 2))),
        "palette GIF": encoded(palette, "GIF", transparency=palette.getpixel((2, 2))),
        "tRNS of RGB": encoded(rgba.convert("RGB"), transparency=(0, 0, 0)),
        "WebP": encoded(rgba, "WEBP", lossless=True),
    }
    for name, data in files.items():
        values = pixels(data)
        assert (values[:20, :12] == 255).all(), name
        assert (values[30:, :12] < 255).any(), name


def test_half_transparent_black_is_middle_grey():
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 128))
    assert np.abs(pixels(encoded(image)) - 127).max() <= 1


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    for format in ("PNG", "TIFF"):
        got = pixels(encoded(Image.fromarray(ramp.astype(np.uint16)), format))
        assert np.abs(got - (ramp / 257)[..., None]).max() <= 0.51


def test_sixteen_bit_grey_with_a_transparent_level_shows_white_there():
    values = np.full((32, 32), 1000, np.uint16)
    values[:, :16] = 40000
    got = pixels(encoded(Image.fromarray(values), transparency=1000))
    assert (got[:, 16:] == 255).all()
    assert (np.abs(got[:, :16] - 40000 / 257) <= 0.51).all()


def test_float_pictures_are_scaled_from_0_to_1_and_refused_beyond():
    ramp = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    assert np.abs(pixels(encoded(Image.fromarray(ramp), "TIFF")) - 255 * ramp[..., None]).max() <= 0.51
    assert reason_of(encoded(Image.fromarray(ramp * 7), "TIFF")) == Reason.UNDECODABLE
    ramp[0, 0] = np.nan
    assert reason_of(encoded(Image.fromarray(ramp), "TIFF")) == Reason.UNDECODABLE


def test_cmyk_of_jpeg_and_tiff_keeps_its_colours():
    rgb = quarters()
    expected = np.asarray(rgb.convert("CMYK").convert("RGB")).astype(int)
    jpeg = encoded(rgb.convert("CMYK"), "JPEG", quality=95)  # Pillow writes the Adobe marker and inverted inks
    assert b"Adobe" in jpeg
    assert np.abs(pixels(jpeg) - expected).mean() < 4
    assert (pixels(encoded(rgb.convert("CMYK"), "TIFF")) == expected).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr"])
def test_common_modes_become_rgb(mode):
    image = quarters().convert(mode)
    format = "JPEG" if mode == "YCbCr" else "PNG"
    wrong = np.abs(pixels(encoded(image, format)) - np.asarray(image.convert("RGB")).astype(int))
    assert wrong.mean() < 8 if format == "JPEG" else wrong.max() == 0


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_kept(format):
    first, second = quarters(), Image.new("RGB", (32, 48), "black")
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(first, format, save_all=True, append_images=[second], duration=100, **options)
    assert np.abs(pixels(data) - np.asarray(first).astype(int)).mean() < 4


def test_the_stored_picture_is_a_lossless_square_of_the_middle():
    wide = Image.new("RGB", (96, 32), (10, 20, 30))  # the middle third has the wanted size: no pixel may change
    wide.paste((200, 100, 50), (32, 0, 64, 16))
    image = normalise(encoded(wide), SMALL)
    stored = Image.open(io.BytesIO(image.data))
    assert (stored.format, stored.mode, stored.size) == ("WEBP", "RGB", (32, 32))
    assert (np.asarray(stored) == np.asarray(image.pixels)).all()
    assert (image.width, image.height, image.original_width, image.original_height) == (32, 32, 96, 32)
    assert (np.asarray(stored) == np.asarray(wide)[:, 32:64]).all()


def test_small_pictures_are_scaled_up_and_one_file_always_gives_the_same_bytes():
    data = encoded(quarters(8, 12))
    first, second = normalise(data, SMALL), normalise(data, SMALL)
    assert first.pixels.size == (32, 32)
    assert first.data == second.data


def test_shrinking_is_antialiased():
    stripes = np.zeros((512, 512), np.uint8)
    stripes[:, ::2] = 255  # thinner than a pixel of the result: any sampling of single pixels would be black or white
    stripes[:256] = 0
    got = np.asarray(normalise(encoded(Image.fromarray(stripes)), SMALL).pixels).astype(int)
    assert np.abs(got[20:30, 3:-3] - 127.5).max() <= 0.51  # the filter spans three pixels; at the border it is cut


def test_what_is_no_picture_is_refused_with_its_reason():
    good = encoded(quarters())
    jpeg = encoded(quarters(200, 200), "JPEG")
    assert reason_of(b"") == Reason.EMPTY_FILE
    assert reason_of(b"<!doctype html><title>404</title>") == Reason.NOT_AN_IMAGE
    assert reason_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == Reason.NOT_AN_IMAGE
    assert reason_of(good[:-30]) == Reason.UNDECODABLE
    assert reason_of(jpeg[: len(jpeg) // 2]) == Reason.UNDECODABLE
    assert reason_of(good, ImageConfig(image_px=32, min_side_px=8, max_bytes=len(good) - 1)) == Reason.TOO_MANY_BYTES
    assert reason_of(encoded(Image.new("RGB", (1, 500)))) == Reason.EXTREME_ASPECT
    assert reason_of(encoded(Image.new("RGB", (7, 7)))) == Reason.TOO_SMALL
    assert reason_of(encoded(Image.new("RGB", (32, 32), "teal"))) == Reason.BLANK
    assert reason_of(encoded(Image.new("RGBA", (32, 32), (1, 2, 3, 0)))) == Reason.BLANK


def test_a_format_outside_the_list_is_not_even_tried():
    assert reason_of(encoded(quarters(), "PPM")) == Reason.NOT_AN_IMAGE


@pytest.fixture(scope="module")
def poor():
    """A decoder in a child that may take 16 MiB."""
    with Decoder(ImageConfig(image_px=32, min_side_px=8, decode_memory_mb=16)) as decoder:
        yield decoder


@pytest.mark.parametrize("side", [8_000, 12_000, 50_000])  # below, at, and above Pillow's own limits
@pytest.mark.parametrize("header", [png, webp_header, jpeg_header])
def test_a_bomb_is_refused_from_its_header_and_takes_no_memory(header, side, poor):
    data = header(side, side)
    assert reason_of(data) == Reason.TOO_MANY_PIXELS
    with pytest.raises(Refused) as caught:
        poor(data)
    assert caught.value.reason == Reason.TOO_MANY_PIXELS


def test_what_unpacks_to_a_hundred_times_its_size_takes_no_memory_either(poor):
    noise = np.random.default_rng(0).integers(0, 256, (32, 1 + 3 * 32), np.uint8)
    noise[:, 0] = 0  # the row's filter: none
    rows, zeros = noise.tobytes(), zlib.compress(bytes(60_000_000), 9)
    assert poor(png(32, 32, rows + bytes(60_000_000))).width == 32  # what follows the last row is not unpacked
    for chunk in ((b"zTXt", b"Comment\0\0" + zeros), (b"iTXt", b"Comment\0\1\0\0\0" + zeros), (b"iCCP", b"profile\0\0" + zeros)):
        with pytest.raises(Refused, match="too large") as caught:
            poor(png(32, 32, rows, chunk))
        assert caught.value.reason == Reason.UNDECODABLE
    assert poor.num_started == 1


def test_the_child_of_these_tests_is_really_poor(poor):
    with pytest.raises(Refused) as caught:
        poor(encoded(quarters(3000, 3000)))
    assert caught.value.reason == Reason.DECODER_MEMORY


def test_pillows_limit_of_the_process_is_left_alone():
    before = Image.MAX_IMAGE_PIXELS
    reason_of(png(60_000, 60_000))
    normalise(encoded(quarters()), SMALL)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_bytes_are_refused_and_never_raise_anything_else(format):
    generator = np.random.default_rng(0)
    whole = np.frombuffer(encoded(quarters(), format), np.uint8)
    num_refused = 0
    for _ in range(60):
        damaged = whole.copy()
        damaged[generator.integers(0, len(whole), 5)] = generator.integers(0, 256, 5)
        data = damaged[: generator.integers(1, len(whole) + 1)].tobytes()
        try:
            got = normalise(data, SMALL)
        except Refused:
            num_refused += 1
        else:
            assert got.pixels.size == (32, 32)
    assert num_refused > 10


def test_settings_out_of_range_are_refused_by_name():
    with pytest.raises(ConfigError, match="max_pixels"):
        ImageConfig(max_pixels=10**12)
    with pytest.raises(ConfigError, match="decode_timeout_s"):
        ImageConfig(decode_timeout_s=0.0)
    with pytest.raises(ConfigError, match="decode_memory_mb"):
        ImageConfig(decode_memory_mb=1)
    with pytest.raises(ConfigError, match=r"image_px.*got 0"):
        from_dict(ImageConfig, {"image_px": 0})

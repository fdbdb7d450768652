"""Embedded colour profiles, written here byte by byte, against the closed forms of the colours they stand for."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from semantica.episodes.colour import to_srgb
from semantica.episodes.images import ImageConfig, decode, normalise

SMALL = ImageConfig(image_px=32, min_side_px=8)
# Red, green and blue in CIE XYZ under D50, as in the profiles that everybody embeds.
SRGB = np.array([[0.4361, 0.2225, 0.0139], [0.3851, 0.7169, 0.0971], [0.1431, 0.0606, 0.7141]])
DISPLAY_P3 = np.array([[0.5151, 0.2412, -0.0011], [0.2920, 0.6922, 0.0419], [0.1571, 0.0666, 0.7841]])


def fixed(*values):
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def icc(space, connection, tags):
    """An ICC profile of version 2.1 (ICC.1:2001-04, 6)."""
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x" + bytes(79), b"wtpt": xyz(0.9642, 1, 0.8249), **tags}
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    head = bytes(8) + struct.pack(">I", 0x02100000) + b"mntr" + space + connection + bytes(12) + b"acsp"
    head = (head + bytes(28) + fixed(0.9642, 1, 0.8249)).ljust(128, b"\0") + struct.pack(">I", len(tags))
    whole = head + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def xyz(*values):
    return b"XYZ " + bytes(4) + fixed(*values)


def curve(values):
    """The table of a tone curve, in 0..1."""
    return b"curv" + struct.pack(">II", 0, len(values)) + np.rint(np.asarray(values) * 65535).astype(">u2").tobytes()


def linear(encoded):
    """What sRGB's encoded values (0..1) are in light: IEC 61966-2-1."""
    encoded = np.asarray(encoded)
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def gamma(light):
    light = np.asarray(light)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)


def rgb_profile(primaries):
    tone = curve(linear(np.linspace(0, 1, 1024)))
    colours = {name: xyz(*row) for name, row in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return icc(b"RGB ", b"XYZ ", {**colours, b"rTRC": tone, b"gTRC": tone, b"bTRC": tone})


def ink_profile():
    """Four inks that look otherwise than their names: one or more are red, whichever; none is white, all are black."""
    lab = np.tile(np.array([54.29, 80.81, 69.89]), (16, 1))  # the red of sRGB under D50
    lab[0], lab[15] = (100, 0, 0), 0
    grid = np.rint(np.stack([lab[:, 0] * 2.55, lab[:, 1] + 128, lab[:, 2] + 128], -1)).astype(np.uint8)
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + 4 * ramp + grid.tobytes() + 3 * ramp
    return icc(b"CMYK", b"Lab ", {b"A2B0": table})


def colours(mode="RGB"):
    values = np.random.default_rng(0).integers(40, 200, (32, 32, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def stored(image, profile, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, icc_profile=profile, **options)
    return np.asarray(normalise(stream.getvalue(), SMALL).pixels).astype(int)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_numbers_of_display_p3_become_the_srgb_of_the_same_colour(format):
    wanted = np.asarray(colours()).astype(int)
    if format in {"JPEG", "AVIF"}:
        wanted = np.broadcast_to(np.array([200, 100, 50]), (32, 32, 3)).copy()
        wanted[:16] = 60, 90, 170  # two halves survive a lossy format
    xyz_of = linear(wanted / 255) @ SRGB
    numbers = np.rint(255 * gamma(xyz_of @ np.linalg.inv(DISPLAY_P3))).clip(0, 255).astype(np.uint8)
    assert np.abs(numbers.astype(int) - wanted).max() > 8  # the test could tell a profile that is ignored
    options = {"lossless": True} if format == "WEBP" else {"quality": 100, "subsampling": "4:4:4"}
    options = {} if format in {"PNG", "TIFF"} else options
    got = stored(Image.fromarray(numbers), rgb_profile(DISPLAY_P3), format, **options)
    assert np.abs(got - wanted).max() <= (3 if format in {"JPEG", "AVIF"} else 2)


def test_a_profile_with_red_and_blue_exchanged_exchanges_them():
    got = stored(colours(), rgb_profile(SRGB[::-1]))
    assert np.abs(got - np.asarray(colours()).astype(int)[..., ::-1]).max() <= 1


def test_srgb_under_any_name_changes_no_pixel():
    for profile in (rgb_profile(SRGB), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()):
        assert (stored(colours(), profile) == np.asarray(colours())).all()


def test_a_grey_picture_follows_its_grey_profile():
    profile = icc(b"GRAY", b"XYZ ", {b"kTRC": curve([0, 1])})  # the numbers are light itself
    grey = colours("L")
    expected = 255 * gamma(np.asarray(grey) / 255)
    assert np.abs(stored(grey, profile) - expected[..., None]).max() <= 1.5


def test_a_grey_picture_with_a_colour_profile_is_taken_as_colour():
    got = stored(colours("L"), rgb_profile(SRGB[::-1]))
    assert np.abs(got - np.asarray(colours("L")).astype(int)[..., None]).max() <= 1


def test_inks_look_as_their_profile_says():
    image = Image.new("CMYK", (32, 32), (0, 0, 0, 0))
    image.paste((0, 255, 0, 0), (0, 0, 16, 32))  # magenta by name, red by profile
    got = stored(image, ink_profile(), "TIFF")
    assert (got[:, 20:] >= 253).all()
    assert np.abs(got[:, :12] - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_damaged_or_foreign_profile_is_ignored(mode):
    generator = np.random.default_rng(0)
    plain = np.asarray(colours(mode).convert("RGB"))
    whole = np.frombuffer(rgb_profile(SRGB[::-1]), np.uint8)
    foreign = {"RGB": ink_profile(), "L": ink_profile(), "CMYK": rgb_profile(DISPLAY_P3)}[mode]
    for profile in (b"", b"no profile", whole[:200].tobytes(), bytes(500), bytes(5_000_000), foreign):
        assert (np.asarray(to_srgb(colours(mode), profile)) == plain).all()
    for _ in range(200):
        damaged = whole.copy()
        damaged[generator.integers(0, 300, 8)] = generator.integers(0, 256, 8)
        assert to_srgb(colours(mode), damaged.tobytes()).mode == "RGB"


def test_transparency_goes_white_before_the_profile_and_stays_white():
    image = colours("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 16, 32))
    assert (stored(image, rgb_profile(DISPLAY_P3))[:, :12] == 255).all()


def test_decode_hands_the_profile_on():
    stream = io.BytesIO()
    colours().save(stream, "PNG", icc_profile=rgb_profile(DISPLAY_P3))
    assert decode(stream.getvalue(), SMALL).profile == rgb_profile(DISPLAY_P3)

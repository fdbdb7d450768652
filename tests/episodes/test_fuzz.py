"""Ten thousand damaged files through the decoder: no exception but Refused, and accepted + quarantined = input.

A file is a function of its number. `make fuzz` (-m slow) takes all of them and prints what became of them; the normal tests take
a sample.
"""

import io
import struct
import time
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from semantica.episodes.decoder import Decoder
from semantica.episodes.images import FORMATS, ImageConfig
from semantica.episodes.quarantine import Reason, Refused

SETTINGS = ImageConfig(image_px=32, min_side_px=8, decode_timeout_s=10.0, decode_memory_mb=512)
NUM_SAMPLE, NUM_ALL = 2_000, 10_000
INTERESTING = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def seeds():
    """Small whole files of every format and of most ways to store one: (format, bytes)."""
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 256, (6, 5, 3), np.uint8)).resize((40, 48), Image.Resampling.BICUBIC)
    clear = smooth.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 20, 24))
    wide = Image.fromarray((np.asarray(smooth.convert("L")).astype(np.uint16)) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    frames = {"save_all": True, "append_images": [smooth.rotate(90), smooth.rotate(180)], "duration": 40}
    profile = b"profile" * 40
    made = [
        (smooth, "JPEG", {}), (smooth, "JPEG", {"progressive": True, "exif": exif}), (smooth, "JPEG", {"icc_profile": profile}),
        (smooth.convert("CMYK"), "JPEG", {}), (smooth.convert("L"), "JPEG", {"restart_marker_rows": 1}),
        (smooth, "PNG", {"exif": exif}), (clear, "PNG", {"icc_profile": profile}), (smooth.quantize(9), "PNG", {"transparency": 2}),
        (wide, "PNG", {"transparency": 257}), (smooth, "PNG", frames), (smooth.convert("1"), "PNG", {}),
        (smooth, "WEBP", {}), (smooth, "WEBP", {"lossless": True, "exif": exif}), (clear, "WEBP", {}), (smooth, "WEBP", frames),
        (smooth.quantize(16), "GIF", {"transparency": 3}), (smooth, "GIF", frames),
        (smooth, "BMP", {}), (smooth.quantize(16), "BMP", {}), (clear, "BMP", {}), (smooth, "DIB", {}),
        (smooth, "AVIF", {"speed": 10}), (clear, "AVIF", {"speed": 10, "exif": exif}), (smooth, "AVIF", {**frames, "speed": 10}),
        (wide, "TIFF", {}), (smooth.convert("CMYK"), "TIFF", {"exif": exif}), (smooth.quantize(9), "TIFF", {}),
        *((smooth, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "lzma")),
        (smooth.convert("1"), "TIFF", {"compression": "group4"}),
    ]  # fmt: skip
    files = []
    for image, format, options in made:
        stream = io.BytesIO()
        image.save(stream, format, **options)
        files.append((format, stream.getvalue()))
    return files


def flip_bits(data, generator):
    for at in generator.integers(0, 8 * len(data), generator.integers(1, 17)):
        data[at // 8] ^= 1 << (at % 8)
    return data


def truncate(data, generator):
    return data[: generator.integers(0, len(data))]


def edit_header(data, generator):
    for at in generator.integers(0, min(64, len(data)), generator.integers(1, 5)):
        data[at] = generator.integers(0, 256)
    return data


def set_number(data, generator):
    """A number where the format may keep a length, a size or an offset."""
    size, order = int(generator.choice([1, 2, 4])), str(generator.choice(["little", "big"]))
    at = int(generator.integers(0, max(1, len(data) - size)))
    data[at : at + size] = (int(generator.choice(INTERESTING)) % 256**size).to_bytes(size, order)
    return data


def swap_blocks(data, generator):
    a, b, c, d = np.sort(generator.integers(0, len(data) + 1, 4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def repeat_or_drop(data, generator):
    a, b = np.sort(generator.integers(0, len(data) + 1, 2))
    return data[:a] + data[a:b] * int(generator.choice([0, 2, 3])) + data[b:]


def fill(data, generator):
    a = int(generator.integers(0, len(data)))
    b = min(len(data), a + int(generator.integers(1, 65)))
    data[a:b] = bytes([int(generator.choice([0, 0xFF, generator.integers(0, 256)]))]) * (b - a)
    return data


MUTATIONS = (flip_bits, truncate, edit_header, set_number, swap_blocks, repeat_or_drop, fill)


def with_right_sums(data):
    """The PNG with the checksums that its damaged chunks should have, so that damage gets past them."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out


def fuzzed(number, files):
    """(format, damaged bytes) of a number."""
    generator = np.random.default_rng([1, number])
    format, whole = files[number % len(files)]
    data = bytearray(whole)
    for _ in range(generator.integers(1, 4)):
        if not data:
            break
        mutation = int(generator.integers(0, len(MUTATIONS) + 1))
        if mutation < len(MUTATIONS):
            data = MUTATIONS[mutation](data, generator)
        else:  # the head of this file, the tail of another
            other = files[generator.integers(0, len(files))][1]
            data = data[: generator.integers(0, len(data))] + other[generator.integers(0, len(other)) :]
    if format == "PNG" and generator.random() < 0.7:
        data = with_right_sums(bytes(data))
    return format, bytes(data)


def run(numbers):
    """(what became of the files by format, "accepted" or the reason; how many children it took)."""
    files, counts = seeds(), Counter()
    with Decoder(SETTINGS) as decoder:
        for number in numbers:
            format, data = fuzzed(number, files)
            try:
                image = decoder(data)
            except Refused as refused:
                counts[format, refused.reason] += 1
            else:
                assert image.pixels.size == (32, 32)
                with Image.open(io.BytesIO(image.data)) as kept:
                    assert kept.convert("RGB").tobytes() == image.pixels.tobytes()
                counts[format, "accepted"] += 1
        return counts, decoder.num_started


def check(counts, num_files):
    assert sum(counts.values()) == num_files
    assert {format for format, _ in counts} == set(FORMATS)
    for format in FORMATS:
        assert counts[format, "accepted"] > 0, f"{format}: the damage lets nothing through"
        assert counts[format, Reason.UNDECODABLE] > 0, f"{format}: the damage hurts nothing"


def test_every_seed_is_a_good_picture():
    files = seeds()
    with Decoder(SETTINGS) as decoder:
        for _, data in files:
            assert decoder(data).width == 32
        assert decoder.num_started == 1


def test_a_file_is_a_function_of_its_number():
    files = seeds()
    assert [fuzzed(number, files) for number in range(40)] == [fuzzed(number, files) for number in range(40)]
    assert sum(fuzzed(number, files)[1] != files[number % len(files)][1] for number in range(400)) > 380


def test_a_sample_of_damaged_files_is_accepted_or_quarantined():
    counts, _ = run(range(NUM_SAMPLE))
    check(counts, NUM_SAMPLE)


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_accepted_or_quarantined(request):
    if request.config.getoption("markexpr") != "slow":
        pytest.skip("make fuzz runs it")
    started = time.monotonic()
    counts, num_children = run(range(NUM_ALL))
    totals = Counter()
    for (_, became), count in counts.items():
        totals[str(became)] += count
    for became, count in totals.most_common():
        print(f"\n{count:6d} {became:16s}", *(f"{format} {counts[format, became]}" for format in FORMATS), end="")
    print(f"\n{sum(totals.values())} files in {time.monotonic() - started:.0f} s, {num_children} children")
    check(counts, NUM_ALL)

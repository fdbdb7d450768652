import concurrent.futures
import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from semantica.data.location import location
from semantica.errors import DataError
from semantica.measure.frechet import FeatureStatistics, frechet_distance
from semantica.measure.reference import cached_reference, read_reference, reference_key, reference_path

EXTRACTOR = {"name": "inception", "weights_sha256": "ab" * 32, "dim": 6}
KEY = reference_key(EXTRACTOR, "bicubic 299", ["a", "b", "c"])


def some_statistics(seed=0, n=40, dim=6):
    return FeatureStatistics.of(np.random.default_rng(seed).standard_normal((n, dim)))


class Computed:
    """Counts how often the statistics were really computed."""

    def __init__(self):
        self.times, self.lock = 0, threading.Lock()

    def __call__(self):
        with self.lock:
            self.times += 1
        return some_statistics()


def test_the_key_names_what_the_statistics_are_of():
    assert reference_key(dict(reversed(EXTRACTOR.items())), "bicubic 299", ["c", "a", "b"]) == KEY
    others = [
        reference_key({**EXTRACTOR, "weights_sha256": "cd" * 32}, "bicubic 299", ["a", "b", "c"]),
        reference_key(EXTRACTOR, "bilinear 299", ["a", "b", "c"]),
        reference_key(EXTRACTOR, "bicubic 299", ["a", "b"]),
        reference_key(EXTRACTOR, "bicubic 299", ["a", "b", "c", "c"]),
        reference_key(EXTRACTOR, "bicubic 299", ["ab", "c"]),
    ]
    assert len({KEY, *others}) == 6


def test_the_second_time_nothing_is_computed_and_the_bits_are_the_same(tmp_path):
    compute = Computed()
    first, second = (cached_reference(tmp_path / "references", KEY, compute) for _ in range(2))
    assert compute.times == 1
    assert first.statistics.n == second.statistics.n
    for name in ("sum", "outer"):
        assert getattr(first.statistics, name).tobytes() == getattr(second.statistics, name).tobytes()
    assert first.root.tobytes() == second.root.tobytes()
    other = some_statistics(1)
    assert frechet_distance(other, second) == frechet_distance(other, first)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "header", "renamed", "number", "missing"])
def test_a_damaged_file_is_found_and_made_again(tmp_path, caplog, damage):
    compute, path = Computed(), reference_path(tmp_path, KEY)
    cached_reference(tmp_path, KEY, compute)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    elif damage == "header":
        path.write_bytes(b"\xff" * 8 + whole[8:])
    elif damage == "renamed":  # the reference of another set under this name
        other = reference_key(EXTRACTOR, "bicubic 299", ["other"])
        cached_reference(tmp_path, other, some_statistics)
        reference_path(tmp_path, other).replace(path)
    elif damage == "number":
        save_file({**load_file(path), "n": np.asarray(41)}, path)
    else:
        arrays = load_file(path)
        del arrays["root"]
        save_file(arrays, path)
    with pytest.raises(DataError, match="is damaged"):
        read_reference(tmp_path, KEY)
    with caplog.at_level(logging.WARNING):
        cached_reference(tmp_path, KEY, compute)
    assert compute.times == 2
    assert "it is computed again" in caplog.text
    assert path.read_bytes() == whole


def test_a_missing_reference_is_named(tmp_path):
    with pytest.raises(DataError, match=f"expected the file .*{KEY}.safetensors, got none"):
        read_reference(tmp_path, KEY)


def test_many_threads_that_write_one_reference_do_no_harm(tmp_path):
    compute, start = Computed(), threading.Barrier(8)

    def together(_):
        start.wait()
        return cached_reference(tmp_path, KEY, compute)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(together, range(8)))
    assert compute.times > 1  # they did write at once
    assert len({reference.root.tobytes() for reference in found}) == 1
    assert [p.name for p in tmp_path.iterdir()] == [f"{KEY}.safetensors"]
    assert read_reference(tmp_path, KEY).statistics.n == 40


WRITER = """
import pathlib, sys
import numpy as np
from semantica.measure.frechet import FeatureStatistics
from semantica.measure.reference import cached_reference, reference_path

folder, key = pathlib.Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
for _ in range(60):
    reference_path(folder, key).unlink(missing_ok=True)
    cached_reference(folder, key, lambda: FeatureStatistics.of(np.random.default_rng(0).standard_normal((40, 6))))
"""


def test_two_processes_that_write_and_remove_one_reference_never_see_half_of_it(tmp_path, caplog):
    command = [sys.executable, "-c", WRITER, str(tmp_path), KEY]
    options = {"cwd": Path(__file__).parents[2], "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen(command, **options) for _ in range(2)]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 2
    while any(writer.poll() is None for writer in writers):
        assert cached_reference(tmp_path, KEY, some_statistics).statistics.n == 40
    heard = "".join(writer.communicate()[1] for writer in writers)
    assert [writer.returncode for writer in writers] == [0, 0], heard
    assert "damaged" not in heard + caplog.text
    assert [p.name for p in tmp_path.iterdir()] == [f"{KEY}.safetensors"]


def test_a_reference_lies_in_a_bucket_as_well(s3):
    folder, compute = location(f"{s3}/references"), Computed()
    first, second = (cached_reference(folder, KEY, compute) for _ in range(2))
    assert compute.times == 1
    assert first.root.tobytes() == second.root.tobytes()

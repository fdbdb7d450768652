"""The census of pictures: never an underestimate, rarely an overestimate, the same in any order, in fixed memory."""

import hashlib

import numpy as np

from semantica.episodes.census import BYTES_PER_PICTURE, Census, PageIds


def name(number):
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def pages_of(numbers, held_out=False):
    return PageIds.of((held_out, [name(n) for n in page]) for page in numbers)


def test_a_picture_counts_once_a_page():
    census = Census(1)
    census.add(pages_of([[1, 1, 2], [1], [1, 3]]))
    assert census.num_pages == 3
    assert census.is_furniture(name(1), 2)
    assert not census.is_furniture(name(1), 3)
    assert not census.is_furniture(name(2), 1)
    assert not census.is_furniture(name(4), 0)


def test_only_training_pages_make_a_training_picture():
    census = Census(1)
    census.add(pages_of([[1, 2]]))
    census.add(pages_of([[2, 3]], held_out=True))
    assert [census.in_training(name(n)) for n in (1, 2, 3, 4)] == [True, True, False, False]


def test_the_order_of_pages_does_not_matter_and_the_file_holds_everything():
    first, second = Census(1), Census(1)
    parts = [pages_of([[n, n + 1, n % 7]], held_out=n % 3 == 0) for n in range(200)]
    for part in parts:
        first.add(part)
    for part in reversed(parts):
        second.add(PageIds.from_bytes(part.to_bytes()))
    assert first.to_bytes() == second.to_bytes()
    assert Census.from_bytes(first.to_bytes()).to_bytes() == first.to_bytes()


def test_with_sixteen_bytes_a_picture_errors_are_rarer_than_one_in_ten_thousand_and_one_sided():
    megabytes = 1
    n = megabytes * 2**20 // BYTES_PER_PICTURE
    ids = np.random.default_rng(0).integers(0, 256, (2 * n, 16), np.uint8)
    census = Census(megabytes)
    census.add(PageIds(n, ids[:n], np.zeros(n, bool)))
    assert census.megabytes_wanted == census.megabytes == megabytes
    inside = [bytes(row).hex() for row in ids[:n:7]]
    assert all(census.in_training(i) for i in inside)  # never missed
    assert all(census.is_furniture(i, 0) for i in inside)
    outside = [bytes(row).hex() for row in ids[n:]]
    assert sum(census.in_training(i) for i in outside) <= 1e-4 * n
    assert sum(census.is_furniture(i, 10) for i in outside) == 0


def test_a_count_beyond_its_cell_saturates():
    census = Census(1)
    same = np.tile(np.arange(16, dtype=np.uint8), (70_000, 1))
    census.add(PageIds(70_000, same, np.zeros(70_000, bool)))
    picture = bytes(range(16)).hex()
    assert census.is_furniture(picture, 60_000)
    assert census.is_furniture(picture, 1e9)  # more cannot be told apart

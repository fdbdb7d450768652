"""Retrieval among pages: closed forms, a simulation of what the expectation stands for, and what is refused."""

import itertools

import numpy as np
import pytest

from semantica.errors import DataError
from semantica.measure.retrieval import retrieval


def features(num, seed=0, dim=8):
    return np.random.default_rng(seed).standard_normal((num, dim))


def test_the_picture_itself_is_always_found_and_its_opposite_never():
    gallery = features(30)
    pages = np.arange(30)
    assert retrieval(gallery, gallery, pages, num_ways=10).accuracy == pytest.approx(1)
    assert retrieval(-gallery, gallery, pages, num_ways=10).accuracy == 0


def test_a_query_that_knows_nothing_is_found_by_chance():
    gallery, pages = features(400), np.tile(np.arange(400), 20)
    result = retrieval(features(8000, seed=1), gallery, pages, num_ways=100)
    assert result.chance == 0.01
    assert abs(result.accuracy - 0.01) < 4 * result.standard_error
    assert result.standard_error < 0.002


def test_the_expectation_is_the_mean_over_every_choice_of_the_other_pages():
    queries, gallery = features(7, seed=1), features(7)
    cosines = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (gallery / np.linalg.norm(gallery, axis=1)[:, None]).T
    expected = [
        np.mean([cosines[i, i] > cosines[i, list(rest)].max() for rest in itertools.combinations(set(range(7)) - {i}, 3)])
        for i in range(7)
    ]
    result = retrieval(queries, gallery, np.arange(7), num_ways=4)
    np.testing.assert_allclose(result.per_page, expected)
    assert result.accuracy == pytest.approx(np.mean(expected))
    assert result.standard_error == pytest.approx(np.std(expected, ddof=1) / np.sqrt(7))


def test_ties_are_the_mean_over_every_choice_of_pages_and_every_order_of_equal_ones():
    """Page 0 of 8 is asked for; two pages are nearer, three as near and two further, in cosines without rounding."""
    gallery = np.array([[3, 4], [1, 0], [1, 0], [3, 4], [3, 4], [6, 8], [0, 1], [-1, 0]], np.float64)
    queries, order_of_ties = np.array([[1.0, 0], [0, 1]]), 24
    for ways in range(2, 9):
        shares = []
        for rest in itertools.combinations(range(1, 8), ways - 1):
            nearer, ties = sum(page in (1, 2) for page in rest), [page for page in rest if page in (3, 4, 5)]
            wins = [
                not nearer and all(order.index(0) < order.index(t) for t in ties) for order in itertools.permutations((0, 3, 4, 5))
            ]
            assert len(wins) == order_of_ties
            shares.append(np.mean(wins))
        result = retrieval(queries, gallery, np.array([0, 6]), num_ways=ways)
        assert result.per_page[0] == pytest.approx(np.mean(shares), abs=1e-12), ways
        assert result.per_page[1] == pytest.approx(1)


def test_pages_with_the_same_picture_are_found_by_chance_among_themselves():
    gallery, pages = np.tile(features(1), (10, 1)), np.arange(10)
    np.testing.assert_allclose(retrieval(features(10, seed=1), gallery, pages, num_ways=4).per_page, 1 / 4)


def test_queries_of_one_page_are_averaged_first_and_all_pages_compete_when_there_are_few():
    gallery = np.eye(3)
    queries = np.array([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])
    result = retrieval(queries, gallery, np.array([0, 0, 1, 1]))
    assert result.num_ways == 3
    np.testing.assert_allclose(result.per_page, [0.5, 0.5])
    np.testing.assert_array_equal(result.page, [0, 1])


def test_the_mean_is_subtracted_from_both_sides():
    gallery, mean = features(20), np.full(8, 3.0)
    pages = np.arange(20)
    plain = retrieval(features(20, seed=2), gallery, pages, num_ways=5)
    shifted = retrieval(features(20, seed=2) + mean, gallery + mean, pages, mean=mean, num_ways=5)
    np.testing.assert_allclose(shifted.per_page, plain.per_page)


@pytest.mark.parametrize(
    ("gallery", "pages", "what"),
    [
        (features(1), [0, 0], "at least 2 pages, got 1"),
        (features(3), [0, 3], "below 3 pages"),
        (features(3), [1, 1], "queries of at least 2"),
    ],
)
def test_what_cannot_be_retrieved_is_refused(gallery, pages, what):
    with pytest.raises(DataError, match=what):
        retrieval(features(2), gallery, np.array(pages))

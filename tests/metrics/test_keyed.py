import functools
import itertools
import operator
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from semantica.metrics.keyed import KeyedStatistics

from semantica.errors import DataError
from semantica.measure.frechet import FeatureStatistics

N, DIM = 40, 5
FEATURES = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32) + 2
NAMES = [f"sample{i:03d}" for i in range(N)]
WHOLE = FeatureStatistics.of(FEATURES)


def part(key, indices):
    return KeyedStatistics.of(key, [NAMES[i] for i in indices], FEATURES[list(indices)])


def split_at(cuts):
    edges = [0, *sorted(cuts), N]
    return [part(f"shard{i}", range(a, b)) for i, (a, b) in enumerate(itertools.pairwise(edges)) if a < b]


@settings(max_examples=100, deadline=None)
@given(cuts=st.sets(st.integers(1, N - 1), max_size=8), data=st.data())
def test_any_split_any_order_and_any_repetition_give_the_sums_of_the_whole(cuts, data):
    parts = split_at(cuts)
    order = data.draw(st.permutations(range(len(parts)))) + data.draw(st.lists(st.integers(0, len(parts) - 1), max_size=5))
    tree = data.draw(st.integers(0, len(order)))  # two drivers merge, and then each other
    left, right = (KeyedStatistics.merged(parts[i] for i in some) for some in (order[:tree], order[tree:]))
    merged = left + right
    total = merged.total()
    assert (total.n, merged.num_samples) == (N, N)
    np.testing.assert_allclose(total.sum, WHOLE.sum, rtol=1e-12)
    np.testing.assert_allclose(total.outer, WHOLE.outer, rtol=1e-12)
    straight = functools.reduce(operator.add, parts).total()
    assert total.sum.tobytes() == straight.sum.tobytes()  # the same parts: the same bits
    assert total.outer.tobytes() == straight.outer.tobytes()


def test_a_part_does_not_depend_on_the_order_of_its_pictures():
    shuffled = np.random.default_rng(1).permutation(N)
    first, second = part("a", range(N)), part("a", shuffled.tolist())
    assert first.parts["a"].sha256 == second.parts["a"].sha256
    assert (first + second).total().outer.tobytes() == first.total().outer.tobytes()


def test_another_part_under_the_same_key_is_refused():
    with pytest.raises(DataError, match="statistics of 'a': expected the same part each time"):
        part("a", range(5)) + part("a", range(6))
    changed = FEATURES[:5].copy()
    changed[4, 4] = np.nextafter(changed[4, 4], np.float32(9))  # one bit
    with pytest.raises(DataError, match="measure 'a' again"):
        part("a", range(5)) + KeyedStatistics.of("a", NAMES[:5], changed)
    with pytest.raises(DataError, match="the same part each time"):  # the same numbers of other pictures
        part("a", range(5)) + KeyedStatistics.of("a", NAMES[5:10], FEATURES[:5])


def test_a_picture_in_two_parts_is_refused():
    with pytest.raises(DataError, match="statistics of 'b': sample 'sample004' is also in 'a'"):
        part("a", range(5)) + part("b", range(4, 9))
    with pytest.raises(DataError, match="every sample once, got 'sample001' twice"):
        part("a", [0, 1, 2, 1])


def test_parts_of_two_dimensions_no_parts_and_missing_ids_are_named():
    with pytest.raises(DataError, match="one feature dimension, got 5 and 4"):
        (part("a", range(5)) + KeyedStatistics.of("b", NAMES[5:9], FEATURES[5:9, :4])).total()
    with pytest.raises(DataError, match="at least one part, got none"):
        KeyedStatistics.merged([]).total()
    with pytest.raises(DataError, match="one sample id for each of 5 features, got 4"):
        KeyedStatistics.of("a", NAMES[:4], FEATURES[:5])


def test_a_part_travels_between_workers_unchanged():
    sent = part("a", range(5))
    back = pickle.loads(pickle.dumps(sent))  # noqa: S301 - as Ray does between its own processes
    assert (sent + back).num_samples == 5

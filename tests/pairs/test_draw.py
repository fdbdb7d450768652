"""The endless stream of draws: every draw once an epoch, the same for any number of workers, from counts alone."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantica.errors import ConfigError
from semantica.pairs.draw import Draw, LaneStream, PairStream, deal_lanes, generator
from semantica.pairs.selection import RowGroup

GROUPS = tuple(RowGroup(i // 5, i % 5, n) for i, n in enumerate([7, 0, 3, 12, 5, 1, 9, 4, 0, 6, 2, 8]))
COUNTS = st.lists(st.integers(0, 12), min_size=4, max_size=14)


def stream(groups=GROUPS, name="hash", seed=0, batch_size=8, num_lanes=4, window_groups=2):
    return PairStream(groups, name, seed=seed, batch_size=batch_size, num_lanes=num_lanes, window_groups=window_groups)


def first_draws(pairs, steps=10):
    return [pairs.draw(step, slot) for step in range(steps) for slot in range(pairs.batch_size)]


@settings(deadline=None, max_examples=50)
@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=9), window=st.integers(1, 10), epoch=st.integers(0, 3))
def test_one_epoch_of_a_lane_draws_every_draw_exactly_once(counts, window, epoch):
    groups = tuple(RowGroup(0, i, n) for i, n in enumerate(counts))
    lane = LaneStream(groups, ("key",), window)
    total = sum(counts)
    drawn = [lane.draw(epoch * total + p) for p in range(total)]
    assert Counter(drawn) == Counter(Draw(g, i, epoch) for g in groups for i in range(g.num_draws))


def test_a_draw_does_not_depend_on_what_was_drawn_before():
    positions = np.random.default_rng(0).integers(0, 300, 100).tolist()
    used = LaneStream(GROUPS[2:8], ("key",), 2)
    for position in positions:
        assert used.draw(position) == LaneStream(GROUPS[2:8], ("key",), 2).draw(position)


def test_epochs_have_different_orders_and_windows_keep_groups_together():
    groups = tuple(RowGroup(0, i, 10) for i in range(6))
    lane = LaneStream(groups, ("key",), 2)
    orders = {tuple(lane.draw(epoch * 60 + p).group.group for p in range(60)) for epoch in range(5)}
    assert len(orders) == 5
    for order in orders:
        for start in range(0, 60, 20):
            assert len(set(order[start : start + 20])) == 2  # a window opens two groups, not more
            assert len(set(order[start : start + 10])) == 2  # and mixes them


@settings(deadline=None, max_examples=50)
@given(counts=COUNTS, num_lanes=st.integers(1, 4))
def test_lanes_share_out_every_group_that_offers_draws_once_and_evenly(counts, num_lanes):
    groups = [RowGroup(0, i, n) for i, n in enumerate(counts)]
    filled = [g for g in groups if g.num_draws]
    if len(filled) < num_lanes:
        with pytest.raises(ConfigError, match=f"train.num_lanes is {num_lanes}, but only {len(filled)} row groups"):
            deal_lanes(groups, num_lanes)
        return
    lanes = deal_lanes(groups, num_lanes)
    assert len(lanes) == num_lanes
    assert sorted((g for lane in lanes for g in lane), key=lambda g: g.group) == filled
    loads = [sum(g.num_draws for g in lane) for lane in lanes]
    # Greedy dealing: when the last group came to the fullest lane, that lane was the emptiest.
    assert max(loads) - min(loads) <= max(counts)


def test_lanes_do_not_depend_on_the_order_of_the_groups():
    assert deal_lanes(GROUPS, 3) == deal_lanes(GROUPS[::-1], 3)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_slots_of_all_workers_are_the_whole_batch_and_each_worker_has_lanes_of_its_own(world):
    pairs = stream(batch_size=16)
    slots = [list(pairs.slots(rank, world)) for rank in range(world)]
    assert sorted(s for own in slots for s in own) == list(range(16))
    lanes = [{s % 4 for s in own} for own in slots]
    assert all(a.isdisjoint(b) for i, a in enumerate(lanes) for b in lanes[:i])
    groups = [{pairs.draw(step, s).group for step in range(40) for s in own} for own in slots]
    assert all(a.isdisjoint(b) for i, a in enumerate(groups) for b in groups[:i])


@pytest.mark.parametrize("world", [2, 4])
def test_a_worker_that_draws_its_slots_alone_draws_what_one_worker_would(world):
    alone = first_draws(stream(), steps=12)
    for rank in range(world):
        own = stream()
        for step in (11, 0, 5):  # in any order, as after a resume
            assert [own.draw(step, slot) for slot in own.slots(rank, world)] == alone[step * 8 : step * 8 + 8][rank::world]


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(1, 9), min_size=6, max_size=14),
    num_lanes=st.integers(1, 6),
    a_lane=st.integers(1, 3),
    window=st.integers(1, 4),
    step=st.integers(0, 200),
)
def test_every_number_of_workers_that_divides_the_lanes_draws_the_same_batch(counts, num_lanes, a_lane, window, step):
    groups = tuple(RowGroup(0, i, n) for i, n in enumerate(counts))
    batch_size = num_lanes * a_lane
    whole = stream(groups, batch_size=batch_size, num_lanes=num_lanes, window_groups=window)
    expected = [whole.draw(step, slot) for slot in range(batch_size)]
    candidates = np.arange(7)
    for world in (n for n in range(1, num_lanes + 1) if num_lanes % n == 0):
        drawn = {}
        for rank in range(world):
            own = stream(groups, batch_size=batch_size, num_lanes=num_lanes, window_groups=window)
            for slot in own.slots(rank, world):
                assert slot not in drawn
                drawn[slot] = own.draw(step, slot)
                assert own.partners(drawn[slot], candidates, 3) == whole.partners(expected[slot], candidates, 3)
        assert [drawn[slot] for slot in range(batch_size)] == expected
    with pytest.raises(ConfigError, match="must divide num_lanes"):
        whole.slots(0, num_lanes + 1)


def test_the_draws_of_a_key_are_those_of_earlier_versions():
    """A training that was started by an earlier version goes on with the data that it would have had."""
    pairs = stream(seed=3)
    rows = []
    for step in range(40):
        for slot in range(8):
            d = pairs.draw(step, slot)
            rows.append([d.group.file, d.group.group, d.index, d.epoch, *pairs.partners(d, np.arange(20, 40), 3)])
    assert rows[:3] == [[0, 3, 7, 0, 35], [1, 1, 7, 0, 39, 24, 26], [0, 4, 3, 0, 31, 35, 22]]
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    assert digest == "a780c28f285a5e964530e7683a08249b748512584dff9b543cd86ac24d9613d6"


def test_one_epoch_of_all_lanes_of_equal_size_draws_every_draw_once():
    groups = [RowGroup(0, i, 6) for i in range(8)]
    pairs = stream(groups)
    assert pairs.num_draws == 48
    assert [pairs.num_draws_of(lanes) for lanes in ([], [0], [1, 3])] == [0, 12, 24]
    drawn = first_draws(pairs, steps=48 // 8)
    assert Counter((d.group, d.index, d.epoch) for d in drawn) == Counter((g, i, 0) for g in groups for i in range(6))


def test_another_selection_or_seed_or_key_gives_another_stream():
    streams = [first_draws(stream()), first_draws(stream(name="other")), first_draws(stream(seed=1))]
    assert all(a != b for i, a in enumerate(streams) for b in streams[:i])
    assert first_draws(stream()) == streams[0]


def test_a_partner_is_keyed_by_the_draw_alone_and_changes_with_epoch_seed_and_selection():
    candidates = np.arange(1000)
    pairs = stream()
    draws = [Draw(GROUPS[3], 2, epoch) for epoch in range(20)]
    chosen = [pairs.partners(d, candidates) for d in draws]
    assert [stream().partners(d, candidates) for d in reversed(draws)] == chosen[::-1]
    assert len({image for images in chosen for image in images}) > 15
    assert [stream(seed=1).partners(d, candidates) for d in draws] != chosen
    assert [stream(name="other").partners(d, candidates) for d in draws] != chosen


def test_partners_are_chosen_about_uniformly():
    pairs, candidates = stream(), np.array([3, 5, 8, 11])
    counts = Counter(pairs.partners(Draw(GROUPS[3], 2, epoch), candidates)[0] for epoch in range(2000))
    assert set(counts) == {3, 5, 8, 11}
    chi_squared = sum((n - 500) ** 2 / 500 for n in counts.values())
    assert chi_squared < 16.3  # exceeded by chance once in 1000 (3 degrees of freedom)


def test_several_partners_are_different_images_in_every_number_and_the_first_stays_first():
    pairs, candidates = stream(), np.array([3, 5, 8, 11, 12])
    draws = [Draw(GROUPS[3], 2, epoch) for epoch in range(2000)]
    chosen = [pairs.partners(d, candidates, max_images=4) for d in draws]
    assert [images[0] for images in chosen] == [pairs.partners(d, candidates)[0] for d in draws]
    assert all(len(set(images)) == len(images) <= 4 for images in chosen)
    sizes, members = Counter(map(len, chosen)), Counter(image for images in chosen for image in images)
    assert sum((sizes[n] - 500) ** 2 / 500 for n in (1, 2, 3, 4)) < 16.3
    expected = sum(members.values()) / 5
    assert all(abs(n - expected) < 5 * expected**0.5 for n in members.values())
    assert stream().partners(draws[7], candidates, max_images=4) == chosen[7]


def test_a_page_with_few_images_gives_all_it_has_at_most():
    pairs, candidates = stream(), np.array([3, 5])
    found = [pairs.partners(Draw(GROUPS[3], 2, epoch), candidates, max_images=4) for epoch in range(200)]
    assert {len(images) for images in found} == {1, 2}


def test_generators_of_different_keys_differ_and_of_one_key_agree():
    assert generator("a", 1).random(4).tolist() == generator("a", 1).random(4).tolist()
    keys = [("a", 1), ("a", 2), ("b", 1), ("a", 1, 1), ("a",)]
    assert len({generator(*key).random() for key in keys}) == len(keys)


def test_a_batch_and_a_world_that_do_not_fit_the_lanes_are_refused():
    with pytest.raises(ConfigError, match=r"train\.batch_size must be a multiple of num_lanes = 4, got 6"):
        stream(batch_size=6)
    with pytest.raises(ConfigError, match="number of workers must divide num_lanes = 4, got 3"):
        stream().slots(0, 3)

"""What a loader keeps in memory: row groups within a bound, read and encoded once, and the batches that are held."""

from collections import Counter

import numpy as np
import pytest

from tests.pairs.batches import STEPS, Numbered, loader, numbers, same


def test_a_batch_that_is_held_stays_what_it_was_while_others_are_made(run):
    own, held = loader(run), [loader(run).batch(step) for step in range(6)]
    kept = [own.batch(step) for step in range(3)]
    views = [own.batch(step).x[1].numpy() for step in range(3, 6)]  # of which only a part is held
    for step in range(6, 40):
        own.batch(step)
    assert all(same(a, b) for a, b in zip(kept, held[:3], strict=True))
    assert all(np.array_equal(view, batch.x[1].numpy()) for view, batch in zip(views, held[3:], strict=True))


def large(batch):
    return {batch.x.data_ptr(), batch.cond.tokens.data_ptr()}


def test_a_recycled_batch_gives_its_memory_to_the_next_one_whose_values_are_its_own(run):
    own, fresh = loader(run), loader(run)
    first = own.batch(0)
    memory = large(first)
    first.recycle()
    second = own.batch(1)
    assert large(second) == memory
    assert same(second, fresh.batch(1))


def test_a_batch_with_fewer_images_in_recycled_memory_is_zero_where_there_is_none(run):
    own, seen = loader(run, max_images=3), 0
    for step in range(STEPS):
        batch = own.batch(step)
        assert (batch.cond.tokens[~batch.cond.present] == 0).all()
        seen += int((~batch.cond.present).sum())
        batch.cond.tokens.fill_(7)
        batch.recycle()
    assert seen > 0


def test_memory_that_is_recycled_twice_is_given_once(run):
    own = loader(run)
    batch = own.batch(0)
    batch.recycle()
    batch.recycle()
    second, third = own.batch(1), own.batch(2)
    assert not large(second) & large(third)
    assert same(second, loader(run).batch(1))


@pytest.mark.parametrize("worker", [{}, {"rank": 1, "world": 2}])
def test_a_row_group_is_read_once_an_epoch_where_the_windows_fit(run, worker):
    own, read = loader(run, window_groups=2, num_lanes=2, **worker), Counter()
    original = own._reader.read

    def counted(entry, group):
        read[entry.path, group] += 1
        return original(entry, group)

    own._reader.read = counted
    lanes = [own.stream._lanes[lane] for lane in sorted({slot % 2 for slot in own.slots})]
    for step in range(max(lane.num_draws for lane in lanes) // 4):  # 4 draws of a lane a step
        own.batch(step)
    assert set(read.values()) == {1}
    assert len(read) == sum(len(lane.groups) for lane in lanes)


def test_of_a_corpus_that_does_not_fit_no_pixels_are_kept_and_the_batches_are_the_same(run):
    whole, part = loader(run, window_groups=4), loader(run, window_groups=4, max_open_bytes=20_000)
    assert all(same(whole.batch(step), part.batch(step)) for step in range(STEPS))
    assert all(group._pixels for group in whole._open.values())
    assert part._open
    assert not any(group._pixels for group in part._open.values())


@pytest.mark.parametrize("kind", ["run", "lean"])
def test_a_tiny_bound_of_memory_gives_the_same_batches(request, kind):
    folder = request.getfixturevalue(kind)
    settings = {"tokens_of": Numbered(), "window_groups": 4} if kind == "lean" else {"window_groups": 4}
    roomy, tiny = loader(folder, **settings), loader(folder, max_open_bytes=1, **settings)
    for step in range(STEPS):
        assert same(roomy.batch(step), tiny.batch(step))
        assert set(tiny._open) == tiny._in_batch
    assert len(tiny._open) < len(roomy._open) == 6


def test_the_row_groups_in_memory_stay_within_the_bound_and_the_last_used_stay(tmp_path, make):
    make.encodings(tmp_path / "encodings", rows_per_group=1)
    make.scores(tmp_path / "scores", tmp_path / "encodings")
    make.selection(tmp_path / "selection", tmp_path / "scores", low=0.0)
    settings = {"batch_size": 2, "num_lanes": 2, "world": 2, "window_groups": 4}
    unbounded = loader(tmp_path, **settings)
    for step in range(40):
        unbounded.batch(step)
    bound = sum(group.num_bytes for group in unbounded._open.values()) // 2
    own, drawn, closed = loader(tmp_path, max_open_bytes=bound, **settings), [], 0
    for step in range(40):
        own.batch(step)
        drawn.append(own.stream.draw(step, own.slots[0]).group)
        assert sum(group.num_bytes for group in own._open.values()) <= bound
        last_used = list(dict.fromkeys(reversed(drawn)))
        assert list(reversed(own._open)) == last_used[: len(own._open)]
        closed += len(last_used) > len(own._open)
    assert closed > 20


def test_the_bytes_of_a_row_group_are_those_of_its_arrays(lean):
    own = loader(lean, tokens_of=Numbered(), window_groups=4)
    for step in range(STEPS):
        own.batch(step)
    for group in own._open.values():
        held = [*group.pooled, *group.scores, *group.partners, *group._pixels.values(), *group._computed.values()]
        stored = sum(len(image["bytes"]) for row in group.images for image in row)
        assert group.num_bytes == stored + sum(array.nbytes for array in held)
        assert group._pixels
        assert group._computed


def test_windows_that_do_not_fit_into_the_bound_are_said(run, caplog):
    loader(run, max_open_bytes=1000)
    assert "raise cluster.loader_mb" in caplog.text
    assert "lower train.window_groups" in caplog.text
    caplog.clear()
    loader(run)
    assert caplog.text == ""


def test_a_conditioning_image_is_encoded_once_while_its_row_group_is_in_memory(lean):
    tokens_of = Numbered()
    own = loader(lean, tokens_of=tokens_of)
    drawn = [{condition for _, condition in numbers(own.batch(step))} for step in range(3)]
    assert len(tokens_of.calls) <= 3
    assert all(len(set(call)) == len(call) for call in tokens_of.calls)
    assert set(tokens_of.calls[0]) == drawn[0]
    held = loader(lean, tokens_of=tokens_of, window_groups=16)
    tokens_of.calls.clear()
    for step in range(40):
        held.batch(step)
    asked = [number for call in tokens_of.calls for number in call]
    assert len(asked) == len(set(asked)) > 10

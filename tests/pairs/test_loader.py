"""Training batches from real files: the right pictures with the right tokens, the same for any number of workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from semantica.data.dataset import read_manifest
from semantica.data.pictures import decode
from semantica.pairs.draw import PairStream
from semantica.pairs.loader import stream_key, to_unit
from semantica.pairs.scores import cosine_upper, square
from semantica.pairs.selection import BandConfig
from tests.pairs.batches import STEPS, Numbered, loader, numbers, same, stored


def test_every_pair_is_of_one_page_inside_the_band_and_never_a_picture_with_itself(run):
    pictures, seen = stored(run), set()
    own = loader(run)
    for step in range(STEPS):
        batch = own.batch(step)
        assert not batch.cond.is_null.any()
        for row, (target, condition) in enumerate(numbers(batch)):
            assert target != condition
            assert pictures[target][0] == pictures[condition][0]
            cosine = cosine_upper(np.stack([pictures[target][1], pictures[condition][1]]))[0]
            assert np.float32(0.1) <= cosine <= np.float32(0.9)
            assert batch.cond.pooled[row, 0].tolist() == pictures[condition][1].tolist()
            assert (batch.cond.tokens[row] == condition).all()
            seen.add((target, condition))
    assert len(seen) > 30


def test_the_target_is_the_stored_picture_pixel_for_pixel(run, make):
    batch = loader(run).batch(0)
    for row, (target, _) in enumerate(numbers(batch)):
        assert torch.equal(batch.x[row], to_unit(decode(make.picture(target), 16)))


def test_every_target_with_a_partner_is_drawn_within_two_epochs(run):
    pictures, own = stored(run), loader(run)
    expected = set()
    for page in {page for page, _ in pictures.values()}:
        members = [n for n, (p, _) in pictures.items() if p == page]
        upper = cosine_upper(np.stack([pictures[n][1] for n in members]))
        matrix = square(upper, len(members))
        kept = (matrix >= np.float32(0.1)) & (matrix <= np.float32(0.9))
        expected |= {n for n, row in zip(members, kept, strict=True) if row.any()}
    assert own.stream.num_draws == len(expected)
    largest = max(lane.num_draws for lane in own.stream._lanes)
    drawn = {t for step in range(-(-largest // 2)) for t, _ in numbers(own.batch(step))}
    assert drawn == expected


def test_a_batch_does_not_depend_on_what_was_loaded_before(run):
    used = loader(run)
    for step in (7, 3, 7, 0, 11):
        assert same(used.batch(step), loader(run).batch(step))


@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_all_workers_put_together_are_the_batch_of_one_bit_for_bit(run, world):
    alone, workers = loader(run), [loader(run, rank=rank, world=world) for rank in range(world)]
    for step in range(STEPS):
        whole, shares = alone.batch(step), [worker.batch(step) for worker in workers]
        x, tokens, pooled = torch.empty_like(whole.x), torch.empty_like(whole.cond.tokens), torch.empty_like(whole.cond.pooled)
        for share in shares:
            x[list(share.slots)], tokens[list(share.slots)] = share.x, share.cond.tokens
            pooled[list(share.slots)] = share.cond.pooled
        assert torch.equal(x, whole.x)
        assert torch.equal(tokens, whole.cond.tokens)
        assert torch.equal(pooled, whole.cond.pooled)


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_every_allowed_number_of_workers_gives_all_of_the_batch_with_every_conditioning_image(run, world):
    settings = {"num_lanes": 6, "batch_size": 12, "max_images": 3}
    alone, workers = loader(run, **settings), [loader(run, rank=rank, world=world, **settings) for rank in range(world)]
    for step in (0, 1, 9, 40):
        whole, shares = alone.batch(step), [worker.batch(step) for worker in workers]
        assert sorted(slot for share in shares for slot in share.slots) == list(range(12))
        for share in shares:
            rows = list(share.slots)
            assert torch.equal(share.x, whole.x[rows])
            for name in ("tokens", "pooled", "present", "similarity"):
                assert torch.equal(getattr(share.cond, name), getattr(whole.cond, name)[rows])


@pytest.mark.parametrize("kind", ["run", "lean"])
def test_several_threads_give_the_same_batches(request, kind):
    folder = request.getfixturevalue(kind)
    settings = {"max_images": 3, "tokens_of": Numbered() if kind == "lean" else None}
    one, four = loader(folder, **settings), loader(folder, num_threads=4, **settings)
    for step in range(STEPS):
        a, b = one.batch(step), four.batch(step)
        assert same(a, b)
        assert torch.equal(a.cond.present, b.cond.present)
        assert torch.equal(a.cond.similarity, b.cond.similarity)


def test_several_conditioning_images_are_of_the_page_and_the_similarity_is_their_mean(run):
    pictures, seen = stored(run), set()
    one, many = loader(run), loader(run, max_images=3)
    for step in range(STEPS):
        batch, single = many.batch(step), one.batch(step)
        assert torch.equal(batch.x, single.x)
        assert torch.equal(batch.cond.tokens[:, :1], single.cond.tokens)
        assert batch.cond.present[:, 0].all()
        for row, (target, _) in enumerate(numbers(batch)):
            given = batch.cond.present[row].tolist()
            members = batch.cond.tokens[row, batch.cond.present[row], 0, 0].int().tolist()
            assert target not in members
            assert len(set(members)) == len(members)
            assert {pictures[member][0] for member in members} == {pictures[target][0]}
            assert batch.cond.pooled[row, given].tolist() == [pictures[member][1].tolist() for member in members]
            cosines = [cosine_upper(np.stack([pictures[target][1], pictures[member][1]]))[0] for member in members]
            assert all(np.float32(0.1) <= cosine <= np.float32(0.9) for cosine in cosines)
            assert float(batch.cond.similarity[row]) == pytest.approx(np.mean(cosines), abs=1e-6)
            seen.add(len(members))
    assert seen == {1, 2, 3}


def test_another_seed_and_another_band_give_other_batches(run, make):
    make.selection(run / "wider", run / "scores", low=0.0, high=0.95)
    first = [numbers(loader(run).batch(step)) for step in range(4)]
    assert [numbers(loader(run, seed=1).batch(step)) for step in range(4)] != first
    assert [numbers(loader(run, selection="wider").batch(step)) for step in range(4)] != first


def test_row_groups_of_uneven_sizes_go_through_scores_and_selection_into_batches(tmp_path, make, monkeypatch):
    """A large page ends its row group early. Every picture has the tokens, embedding and page that it has with even groups."""
    sizes = ((4, 3, 30, 2, 2, 2, 2, 2), (2, 2, 2, 2, 25, 3))
    monkeypatch.setattr("semantica.data.shard_writer.MAX_GROUP_BYTES", 2**14)  # about 18 of these pictures
    make.encodings(tmp_path / "encodings", sizes, rows_per_group=4)
    make.scores(tmp_path / "scores", tmp_path / "encodings")
    make.selection(tmp_path / "selection", tmp_path / "scores", low=-0.9, high=0.99)
    groups = [entry.row_group_rows for entry in read_manifest(tmp_path / "encodings", "encodings").shards()]
    assert groups == [(3, 4, 1), (4, 1, 1)]
    assert [entry.row_group_rows for entry in read_manifest(tmp_path / "scores", "scores").shards()] == groups
    pictures, own, seen = stored(tmp_path), loader(tmp_path, window_groups=4), set()
    expected = {}
    for number, (page, _) in pictures.items():
        upper = cosine_upper(np.stack([pictures[n][1] for n, (p, _) in pictures.items() if p == page]))
        if ((upper >= np.float32(-0.9)) & (upper <= np.float32(0.99))).any():
            expected.setdefault(page, set()).add(number)
    for step in range(60):
        batch = own.batch(step)
        for row, (target, condition) in enumerate(numbers(batch)):
            assert pictures[target][0] == pictures[condition][0]
            assert batch.cond.pooled[row, 0].tolist() == pictures[condition][1].tolist()
            seen.add(target)
    assert {pictures[n][0] for n in seen} == expected.keys()
    assert len(seen) == own.stream.num_draws > 70


def test_the_stream_of_a_loader_is_keyed_by_the_band_and_the_scores(run, make):
    own = loader(run)
    scores = read_manifest(run / "scores", "scores")
    key = stream_key(own.selection.band, scores)
    expected = PairStream(own.selection.row_groups, key, seed=0, batch_size=8, num_lanes=4, window_groups=1)
    assert [own.stream.draw(3, s) for s in range(8)] == [expected.draw(3, s) for s in range(8)]
    assert stream_key(BandConfig(low=0.1, high=0.8), scores) != key == stream_key(BandConfig(low=0.1, high=0.9), scores)
    assert stream_key(own.selection.band, replace(scores, files=scores.files[:1])) != key


def test_batches_are_the_same_with_stored_and_with_computed_tokens(run, lean):
    stored_tokens, computed = loader(run), loader(lean, tokens_of=Numbered())
    assert all(same(stored_tokens.batch(step), computed.batch(step)) for step in range(STEPS))

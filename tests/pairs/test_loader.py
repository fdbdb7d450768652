"""Training batches from real files: the right pictures with the right tokens, the same for any number of workers."""

import io
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from semantica.datasets import read_manifest, read_shard
from semantica.errors import ConfigError, DataError
from semantica.pairs.draw import PairStream
from semantica.pairs.loader import PairLoader, decode_at, stream_key, to_unit
from semantica.pairs.scores import cosine_upper, square
from semantica.pairs.selection import BandConfig

STEPS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory, make):
    """A folder with encodings (22 and 18 pictures), their scores and the selection of the band 0.1 to 0.9."""
    folder = tmp_path_factory.mktemp("run")
    make.encodings(folder / "encodings")
    make.scores(folder / "scores", folder / "encodings")
    make.selection(folder / "selection", folder / "scores", low=0.1, high=0.9)
    return folder


def loader(run, encodings="encodings", selection="selection", **changes):
    settings = {"seed": 0, "batch_size": 8, "num_lanes": 4, "resolution_px": 16, "window_groups": 1} | changes
    return PairLoader(run / encodings, run / selection, **settings)


def numbers(batch):
    """[(target's number, conditioning image's number)] of a batch."""
    pixels = ((batch.x[:, :2, 0, 0] + 1) * 127.5).round().int()
    targets = (pixels[:, 0] + 256 * pixels[:, 1]).tolist()
    return list(zip(targets, batch.cond.tokens[:, 0, 0, 0].int().tolist(), strict=True))


def stored(run):
    """number -> (page, pooled embedding) of every picture."""
    found, number = {}, 0
    manifest = read_manifest(run / "encodings", "encodings")
    for entry in manifest.shards():
        for row in read_shard(run / "encodings", entry, ["episode_id", "pooled"]).to_pylist():
            for pooled in row["pooled"]:
                found[number] = row["episode_id"], np.array(pooled, np.float32)
                number += 1
    return found


def same(a, b):
    return all(torch.equal(p, q) for p, q in ((a.x, b.x), (a.cond.tokens, b.cond.tokens), (a.cond.pooled, b.cond.pooled)))


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
        assert torch.equal(batch.x[row], to_unit(decode_at(make.picture(target), 16)))


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


def test_a_batch_that_is_held_stays_what_it_was_while_others_are_made(run):
    own, held = loader(run), [loader(run).batch(step) for step in range(6)]
    kept = [own.batch(step) for step in range(3)]
    views = [own.batch(step).x[1].numpy() for step in range(3, 6)]  # of which only a part is held
    for step in range(6, 40):
        own.batch(step)
    assert all(same(a, b) for a, b in zip(kept, held[:3], strict=True))
    assert all(np.array_equal(view, batch.x[1].numpy()) for view, batch in zip(views, held[3:], strict=True))


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


def test_row_groups_of_uneven_sizes_go_through_scores_and_selection_into_batches(tmp_path, make, monkeypatch):
    """A large page ends its row group early. Every picture has the tokens, embedding and page that it has with even groups."""
    sizes = ((4, 3, 30, 2, 2, 2, 2, 2), (2, 2, 2, 2, 25, 3))
    monkeypatch.setattr("semantica.shard_writer.MAX_GROUP_BYTES", 2**14)  # about 18 of these pictures
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


def test_encodings_that_the_selection_was_not_made_from_are_refused(run, make):
    make.encodings(run / "others", salt=1)
    with pytest.raises(DataError, match=r"made from other encodings .* run jobs\.pairs"):
        loader(run, encodings="others")


def test_more_lanes_than_row_groups_are_refused(run):
    with pytest.raises(ConfigError, match=r"train\.num_lanes is 16, but only \d+ row groups"):
        loader(run, num_lanes=16, batch_size=16)


def test_pictures_smaller_than_the_training_resolution_are_refused(run):
    with pytest.raises(DataError, match="must be at least 32 px, got 16x16"):
        loader(run, resolution_px=32).batch(0)


@pytest.mark.parametrize(("folder", "job"), [("encodings", "encode"), ("scores", "pairs")])
def test_a_damaged_shard_is_refused_by_its_own_path(run, tmp_path, folder, job):
    shutil.copytree(run, tmp_path / "run")
    own = loader(tmp_path / "run")
    for path in (tmp_path / "run" / folder).glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError) as caught:
        own.batch(0)
    assert f"{tmp_path / 'run' / folder / 'shard-0000'}" in str(caught.value)
    assert re.search(rf"expected \d+ bytes, got \d+\); delete .*{folder} and run jobs\.{job} again", str(caught.value))


@pytest.mark.parametrize(("folder", "column"), [("encodings", "tokens"), ("encodings", "images"), ("scores", "cosine")])
def test_a_changed_bit_of_a_row_group_is_damage_and_no_other_batch(run, tmp_path, folder, column):
    shutil.copytree(run, tmp_path / "run")
    own = loader(tmp_path / "run")
    for path in (tmp_path / "run" / folder).glob("*.parquet"):
        data, metadata = bytearray(path.read_bytes()), pq.read_metadata(path)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            place = [c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith(f"{column}.")][-1]
            data[place.data_page_offset + place.total_compressed_size - 1] ^= 1
        path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{folder}/shard-0000\d\.parquet is not readable .*CRC"):
        own.batch(0)


def test_another_file_of_the_same_size_is_damage(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    own = loader(tmp_path / "run")
    for path in (tmp_path / "run" / "encodings").glob("*.parquet"):
        rows, size = pq.read_table(path), path.stat().st_size
        pq.write_table(rows, path, row_group_size=1, compression="zstd", compression_level=19)
        path.write_bytes(path.read_bytes().rjust(size, b"P") if path.stat().st_size < size else path.read_bytes()[-size:])
    with pytest.raises(DataError, match="is not readable"):
        own.batch(0)


def test_a_larger_picture_is_reduced_by_the_mean_of_its_pixels(make):
    large = decode_at(make.picture(5, side=32), 32).float()
    means = large.unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
    # Pillow averages along rows, then along columns, and rounds after each: half a level twice.
    assert (decode_at(make.picture(5, side=32), 16).float() - means).abs().max() <= 1


@pytest.mark.parametrize(
    ("mode", "form"),
    [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGB", "WEBP")],
)
@pytest.mark.parametrize("side", [24, 12])
def test_pixels_are_those_that_pillow_converts(mode, form, side):
    levels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).convert(mode).save(stream, form)
    rgb = Image.open(io.BytesIO(stream.getvalue())).convert("RGB")
    expected = np.array(rgb if side == 24 else rgb.resize((side, side), Image.Resampling.BOX)).transpose(2, 0, 1)
    pixels = decode_at(stream.getvalue(), side)
    assert np.array_equal(pixels.numpy(), expected)
    unit, out = to_unit(pixels), torch.empty(3, side, side)
    assert np.array_equal(unit.numpy(), expected.astype(np.float32) / np.float32(127.5) - np.float32(1))
    assert to_unit(pixels, out=out) is out
    assert torch.equal(out, unit)


def test_unit_range_ends_at_black_and_white():
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1))[:, 0, 0, 0].tolist() == [-1, 1]


def test_the_stream_of_a_loader_is_keyed_by_the_band_and_the_scores(run, make):
    own = loader(run)
    scores = read_manifest(run / "scores", "scores")
    key = stream_key(own.selection.band, scores)
    expected = PairStream(own.selection.row_groups, key, seed=0, batch_size=8, num_lanes=4, window_groups=1)
    assert [own.stream.draw(3, s) for s in range(8)] == [expected.draw(3, s) for s in range(8)]
    assert stream_key(BandConfig(low=0.1, high=0.8), scores) != key == stream_key(BandConfig(low=0.1, high=0.9), scores)
    assert stream_key(own.selection.band, replace(scores, files=scores.files[:1])) != key


# --- encodings without tokens ---


class Numbered:
    """Tokens from stored pictures, as `make.encodings` stores them; .calls are the numbers that were asked for."""

    def __init__(self):
        self.calls = []

    def __call__(self, pictures):
        pixels = [decode_at(data, 16)[:, 0, 0].int() for data in pictures]
        self.calls.append([int(p[0] + 256 * p[1]) for p in pixels])
        return torch.tensor(self.calls[-1], dtype=torch.float32).view(-1, 1, 1).expand(-1, 3, 8).clone()


@pytest.fixture(scope="module")
def lean(tmp_path_factory, make):
    """The pictures of `run`, without stored tokens."""
    folder = tmp_path_factory.mktemp("lean")
    make.encodings(folder / "encodings", tokens=False)
    make.scores(folder / "scores", folder / "encodings")
    make.selection(folder / "selection", folder / "scores", low=0.1, high=0.9)
    return folder


def test_batches_are_the_same_with_stored_and_with_computed_tokens(run, lean):
    stored_tokens, computed = loader(run), loader(lean, tokens_of=Numbered())
    assert all(same(stored_tokens.batch(step), computed.batch(step)) for step in range(STEPS))


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


def test_encodings_without_tokens_need_a_function_that_makes_them(lean):
    with pytest.raises(DataError, match=r"holds no tokens; pass tokens_of, or run jobs\.encode with --store-tokens"):
        loader(lean)

"""A checkpoint that N workers write together and M read: the same tensors, and never one of some workers only."""

import json
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from semantica.data.durable import new_attempt, partial_of
from semantica.errors import WeightsError
from semantica.training.checkpoint import DamagedCheckpoint, Writers, open_checkpoint, write_checkpoint
from semantica.training.checkpoint.format import Piece, read_pieces, share, write_pieces
from semantica.training.parallel import row_range

KINDS = ("model", "ema", "optimizer")


def written(state, folder, world, patience_s=20.0, absent=()):
    """The errors of `world` workers, each a thread, that write the state together; those absent never come."""
    attempt, errors = new_attempt(), {}

    def work(rank):
        try:
            write_checkpoint(folder, state.snapshot(rank=rank, world=world), Writers(rank, world, attempt, patience_s))
        except (OSError, WeightsError) as error:
            errors[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world) if rank not in absent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.fixture(scope="module")
def folders(living, tmp_path_factory):
    """world -> the folder of the same state, written by that many workers."""
    top, state = tmp_path_factory.mktemp("shards"), living(2)
    for world in (1, 2, 3):
        assert written(state, top / str(world), world) == {}
    return {world: top / str(world) for world in (1, 2, 3)}


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
def test_a_worker_has_the_rows_that_torch_chunk_gives_it(rows, world):
    chunks = torch.arange(rows).chunk(world)
    got = [torch.arange(rows)[slice(*row_range(rows, rank, world))] for rank in range(world)]
    assert all(torch.equal(a, b) for a, b in zip(chunks, got, strict=False))
    assert all(len(rest) == 0 for rest in got[len(chunks) :])


def test_a_worker_has_the_rows_that_fsdp2_gives_it():
    local = Shard.local_shard_size_and_offset
    for rows in range(1, 12):
        for world in range(1, 6):
            for rank in range(world):
                start, stop = row_range(rows, rank, world)
                size, offset = local(rows, world, rank)
                assert size == stop - start
                assert size == 0 or offset == start


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("writers", [1, 2, 3])
def test_what_any_number_of_workers_wrote_any_number_reads(living, folders, writers, readers):
    opened, whole = open_checkpoint(folders[writers]), living(2).snapshot().pieces
    for kind in KINDS:
        parts = [opened.tensors(kind, rank, readers) for rank in range(readers)]
        assert set().union(*parts) == whole[kind].keys()
        for name, piece in whole[kind].items():
            rows = [part[name] for part in parts if name in part]
            assert torch.equal(rows[0] if piece.rows is None else torch.cat(rows), piece.tensor), name
    if readers == 2:  # each has about half of it, no worker reads the others' rows
        sizes = [sum(t.numel() for t in opened.tensors("optimizer", rank, 2).values()) for rank in range(2)]
        assert sum(sizes) == sum(p.tensor.numel() for p in whole["optimizer"].values())
        assert min(sizes) > 0.3 * sum(sizes)


@pytest.mark.parametrize("writers", [2, 3])
def test_a_training_goes_on_from_what_several_workers_wrote(living, folders, writers):
    other = living(0)
    opened = open_checkpoint(folders[writers])
    opened.restore(other.network, other.ema, other.optimizer)
    expected = living(2).snapshot()
    assert other.ema.num_updates == 2
    for kind, pieces in other.snapshot().pieces.items():
        assert all(torch.equal(piece.tensor, expected.pieces[kind][name].tensor) for name, piece in pieces.items())


def test_the_manifest_names_every_file_with_the_names_of_its_tensors_and_no_receipt_stays(folders):
    files = {file.name: file for file in open_checkpoint(folders[3]).files}
    shards = {f"{kind}-0000{rank}-of-00003.safetensors" for kind in KINDS for rank in (1, 2, 3)}
    assert files.keys() == {*shards, "config.json"}
    assert {p.name for p in folders[3].iterdir()} == {*files, "manifest.json"}
    for name in shards:
        names = load_file(folders[3] / name).keys()
        assert (files[name].first, files[name].last) == (min(names), max(names))
        assert files[name].num_bytes == (folders[3] / name).stat().st_size


@pytest.mark.parametrize("damage", ["missing", "flipped", "swapped"])
def test_a_damaged_share_of_one_worker_is_refused_by_its_name(folders, tmp_path, damage):
    copy = shutil.copytree(folders[3], tmp_path / "c")
    path = copy / "ema-00002-of-00003.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        data = bytearray(path.read_bytes())
        data[-5] ^= 16
        path.write_bytes(data)
    else:
        shutil.copy(copy / "ema-00001-of-00003.safetensors", path)
    with pytest.raises(DamagedCheckpoint, match=r"ema-00002-of-00003\.safetensors is (damaged|missing)"):
        open_checkpoint(copy)


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_without_one_of_the_workers_there_is_no_checkpoint_and_nothing_is_left(living, tmp_path, absent):
    errors = written(living(1), tmp_path / "1", 3, patience_s=0.4, absent=(absent,))
    assert errors.keys() == {0, 1, 2} - {absent}
    assert all(isinstance(error, WeightsError) for error in errors.values())
    assert list(tmp_path.iterdir()) == []
    if absent:
        assert f"worker {absent} did not write its share within 0 s" in str(errors[0])


def test_shares_of_another_try_are_never_taken_for_those_of_this_one(living, tmp_path):
    stale = partial_of(tmp_path / "1", new_attempt())
    stale.mkdir()
    for path in ("receipt-00002.json", "model-00002-of-00002.safetensors"):
        (stale / path).write_text("of a try that was killed")
    assert written(living(1), tmp_path / "1", 2) == {}
    assert open_checkpoint(tmp_path / "1").step == 1
    assert stale.exists()


def test_several_workers_without_a_common_attempt_are_refused(living, tmp_path):
    with pytest.raises(ValueError, match="attempt must be a name that all 2 workers share"):
        write_checkpoint(tmp_path / "1", living(1).snapshot(rank=1, world=2))


def test_scalars_and_empty_tensors_and_every_dtype_travel(tmp_path):
    dtypes = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
    tensors = {str(dtype): torch.arange(10).reshape(5, 2).to(dtype) for dtype in dtypes}
    tensors |= {"scalar": torch.tensor(7.5), "empty": torch.empty(0, 3), "one row": torch.ones(1, 4), "µ": torch.zeros(2)}
    paths = [tmp_path / f"{rank}.safetensors" for rank in range(3)]
    for rank, path in enumerate(paths):
        write_pieces(path, "model", share(tensors, rank, 3))
    back = read_pieces(paths)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name].tensor, t) and back[name].tensor.dtype == t.dtype for name, t in tensors.items())
    write_pieces(tmp_path / "whole", "model", share(tensors))
    whole = load_file(tmp_path / "whole")
    assert all(torch.equal(whole[name], t) and whole[name].dtype == t.dtype for name, t in tensors.items())


def test_rows_that_a_worker_does_not_have_are_not_written_in_its_name(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        split = {"w": distribute_tensor(torch.arange(4.0), init_device_mesh("cpu", (1,)), [Shard(0)])}
        assert torch.equal(share(split)["w"].tensor, torch.arange(4.0))
        with pytest.raises(ValueError, match="w must be split so that this worker has share 1 of 2, got share 0 of 1"):
            share(split, 1, 2)
    finally:
        torch.distributed.destroy_process_group()


def test_a_worker_for_whom_there_are_no_rows_reads_an_empty_tensor_of_the_right_shape(tmp_path):
    write_pieces(tmp_path / "a", "model", share({"w": torch.ones(2, 3, dtype=torch.bfloat16)}))
    (piece,) = read_pieces([tmp_path / "a"], rank=3, world=4).values()
    assert (tuple(piece.tensor.shape), piece.tensor.dtype, piece.rows) == ((0, 3), torch.bfloat16, 2)


def test_rows_that_are_missing_or_there_twice_are_named(tmp_path):
    tensor = torch.arange(6.0)
    for name, start, stop in (("a", 0, 2), ("b", 2, 4), ("c", 4, 6), ("d", 3, 6)):
        write_pieces(tmp_path / name, "model", {"w": Piece(tensor[start:stop], start, 6)})
    for names in ("ac", "ab", "bc", "aabc", "abd", "b"):
        with pytest.raises(WeightsError, match=r"w must have rows 0 to 6 once, got \["):
            read_pieces([tmp_path / name for name in names])
    assert torch.equal(read_pieces([tmp_path / name for name in "cab"])["w"].tensor, tensor)
    write_pieces(tmp_path / "other", "model", {"w": Piece(tensor[:2], 4, 8)})
    with pytest.raises(WeightsError, match="w has 8 rows, another file says 6"):
        read_pieces([tmp_path / "a", tmp_path / "other"])


def test_metadata_that_says_nonsense_is_refused_by_the_name_of_the_file(tmp_path):
    for index, rows in enumerate(("{", "[1]", json.dumps({"w": 5}), json.dumps({"w": ["a", "b"]}))):
        save_file({"w": torch.zeros(2)}, tmp_path / str(index), metadata={"rows": rows})
        with pytest.raises(WeightsError, match=f"{tmp_path / str(index)} is not readable"):
            read_pieces([tmp_path / str(index)])

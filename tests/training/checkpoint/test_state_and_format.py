"""A checkpoint folder: what is saved comes back, and nothing that is not what was written is ever used."""

import json
import os
import pickle
import random
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from semantica.config import override, to_dict
from semantica.data.location import file_sha256
from semantica.errors import WeightsError
from semantica.training.checkpoint import open_checkpoint, write_checkpoint
from semantica.training.checkpoint.format import DamagedCheckpoint, FileEntry, checked_files, write_manifest
from semantica.training.ema import Ema
from semantica.training.loop import initial_network
from semantica.training.step import make_optimizer

TENSORS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
FILES = (*TENSORS, "config.json")


@pytest.fixture(scope="module")
def saved(living, tmp_path_factory):
    """The folder of a checkpoint after three updates."""
    folder = tmp_path_factory.mktemp("saved") / "3"
    write_checkpoint(folder, living(3).snapshot(metric=0.25))
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "c")


def same(a, b):
    """Whether weights, EMA and both moments of two trainings are the same, bit for bit."""
    kinds = [(a.snapshot().pieces[kind], b.snapshot().pieces[kind]) for kind in ("model", "ema", "optimizer")]
    return all(x.keys() == y.keys() and all(torch.equal(x[name].tensor, y[name].tensor) for name in x) for x, y in kinds)


def test_everything_of_a_training_comes_back(living, saved):
    state, other = living(3), living(0)
    opened = open_checkpoint(saved)
    assert (opened.step, opened.config, opened.provenance) == (3, state.config, state.provenance)
    assert (opened.metric, opened.counters) == (0.25, {"skipped": 3})
    assert not same(state, other)
    opened.restore(other.network, other.ema, other.optimizer)
    assert same(living.on(state), living.on(replace(other, step=3)))


def test_updates_that_were_skipped_are_not_counted_as_done(living, tmp_path):
    state = replace(living(3), step=8)  # five steps without an update
    write_checkpoint(tmp_path / "8", state.snapshot())
    other = living(0)
    open_checkpoint(tmp_path / "8").restore(other.network, other.ema, other.optimizer)
    assert other.ema.num_updates == 3
    assert {float(s["step"]) for s in other.optimizer.state.values()} == {3.0}


def test_a_training_before_its_first_update_can_be_saved_and_goes_on_as_if_it_had_not_been(living, tmp_path):
    write_checkpoint(tmp_path / "0", living(0).snapshot())
    other = living(2)
    open_checkpoint(tmp_path / "0").restore(other.network, other.ema, other.optimizer)
    assert same(living(1), living.on(replace(other, step=0)))


def test_the_files_are_what_safetensors_itself_writes(living, saved, tmp_path):
    state = living(3)
    save_file({name: p.detach().contiguous() for name, p in state.network.named_parameters()}, tmp_path / "model")
    save_file(dict(state.ema.values), tmp_path / "ema")
    assert (saved / TENSORS[0]).read_bytes() == (tmp_path / "model").read_bytes()
    assert (saved / TENSORS[1]).read_bytes() == (tmp_path / "ema").read_bytes()
    assert sorted(p.name for p in saved.iterdir()) == sorted([*FILES, "manifest.json"])


def test_weights_in_another_memory_layout_make_the_same_files(living, saved, tmp_path):
    state = living(3)
    state.network.to(memory_format=torch.channels_last)
    assert not all(p.is_contiguous() for p in state.network.parameters())
    write_checkpoint(tmp_path / "3", state.snapshot())
    assert all((tmp_path / "3" / name).read_bytes() == (saved / name).read_bytes() for name in TENSORS)


def test_a_folder_with_something_in_it_is_never_written_over(living, saved, tmp_path):
    (tmp_path / "3").mkdir()
    write_checkpoint(tmp_path / "3", living(3).snapshot())  # it was empty
    before = open_checkpoint(tmp_path / "3").hash
    with pytest.raises(OSError, match="not empty"):
        write_checkpoint(tmp_path / "3", living(2).snapshot())
    assert open_checkpoint(tmp_path / "3").hash == before
    assert [p.name for p in tmp_path.iterdir()] == ["3"]


def test_a_thousand_flipped_bits_are_a_thousand_refusals_by_the_name_of_the_file(copy):
    chance = random.Random(0)
    paths = sorted(copy.iterdir())
    sizes = [path.stat().st_size for path in paths]
    refused = 0
    for trial in range(1000):
        # Half of them anywhere, half in each file alike: the small ones are there to be hit.
        path = chance.choices(paths, sizes if trial % 2 else None)[0]
        with path.open("r+b", buffering=0) as stream:
            at = chance.randrange(path.stat().st_size)
            stream.seek(at)
            byte = stream.read(1)[0]
            stream.seek(at)
            stream.write(bytes([byte ^ 1 << chance.randrange(8)]))
            with pytest.raises(DamagedCheckpoint) as caught:
                open_checkpoint(copy)
            refused += f"checkpoint: {path} is damaged" in str(caught.value)
            stream.seek(at)
            stream.write(bytes([byte]))
    assert refused == 1000
    open_checkpoint(copy)  # and whole again


def test_no_bit_of_the_manifest_can_flip_unseen(copy):
    path = copy / "manifest.json"
    data = bytearray(path.read_bytes())
    descriptor = os.open(path, os.O_WRONLY)
    for bit in range(8 * len(data)):
        os.pwrite(descriptor, bytes([data[bit // 8] ^ 1 << bit % 8]), bit // 8)
        with pytest.raises(DamagedCheckpoint, match=r"manifest\.json is damaged"):
            checked_files(copy)
        os.pwrite(descriptor, data[bit // 8 : bit // 8 + 1], bit // 8)
    os.close(descriptor)
    assert len(checked_files(copy)) == 4


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_refused_by_its_name(copy, name):
    whole = (copy / name).read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 0):
        (copy / name).write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpoint, match=rf"{name} is damaged \(it has {length} bytes, expected {len(whole)}\)"):
            open_checkpoint(copy)
    (copy / name).write_bytes(whole + b"\0")
    with pytest.raises(DamagedCheckpoint, match=f"{name} is damaged"):
        open_checkpoint(copy)
    (copy / name).unlink()
    with pytest.raises(DamagedCheckpoint, match=f"{name} is missing"):
        open_checkpoint(copy)
    (copy / name).mkdir()
    with pytest.raises(DamagedCheckpoint, match=f"{name} is damaged"):
        open_checkpoint(copy)


def test_a_folder_without_a_manifest_is_no_checkpoint(copy, tmp_path):
    (copy / "manifest.json").unlink()
    for folder in (copy, tmp_path / "none"):
        with pytest.raises(DamagedCheckpoint, match=r"has no manifest\.json, so it is no finished checkpoint"):
            open_checkpoint(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", "{}", '{"model.safetensors": "0"}', '{"format": 2, "files": []}', "\xff"]
)
def test_a_damaged_manifest_is_refused_and_never_taken_for_one_without_files(copy, text):
    (copy / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(DamagedCheckpoint, match=r"manifest\.json is damaged"):
        open_checkpoint(copy)


def test_tensors_of_another_save_are_refused_and_a_strangers_notes_are_not(copy):
    (copy / "notes.txt").write_text("the good one")
    open_checkpoint(copy)
    shutil.copy(copy / "model.safetensors", copy / "model-00001-of-00002.safetensors")
    with pytest.raises(DamagedCheckpoint, match=r"model-00001-of-00002\.safetensors is not of this checkpoint"):
        open_checkpoint(copy)


class Bomb:
    """Opened by pickle, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_the_place_of_a_file_is_never_opened_even_when_the_manifest_says_it_belongs(copy, tmp_path, living, name):
    (copy / name).write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    sign(copy)
    state = living(0)

    def use():
        open_checkpoint(copy).restore(state.network, state.ema, state.optimizer)
        open_checkpoint(copy).network()

    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        use()
    assert not (tmp_path / "opened").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "opened")))  # noqa: S301 - the bomb works
    assert (tmp_path / "opened").exists()


def rewritten(folder, **changes):
    """The same folder with config.json changed and the manifest true to it."""
    described = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(described))
    return sign(folder)


def sign(folder):
    """The same folder with a manifest that is true to its files."""
    kinds = {"config.json": "config"}
    (folder / "manifest.json").unlink()
    write_manifest(
        folder,
        [
            FileEntry(name, kinds.get(name, name.partition(".")[0]), (folder / name).stat().st_size, file_sha256(folder / name))
            for name in FILES
        ],
    )
    return folder


@pytest.mark.parametrize("changes", [{"config": {"denoise": {}}}, {"step": "many"}, {"provenance": {}}, {"num_ema_updates": None}])
def test_a_configuration_that_this_version_does_not_read_is_refused_but_not_called_damaged(copy, changes):
    with pytest.raises(WeightsError, match="is not a configuration this version reads") as caught:
        open_checkpoint(rewritten(copy, **changes))
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_another_format_is_refused_but_not_called_damaged(copy, monkeypatch):
    files = checked_files(copy)
    (copy / "manifest.json").unlink()
    with monkeypatch.context() as later:
        later.setattr("semantica.training.checkpoint.format.FORMAT", 3)
        write_manifest(copy, files)
    with pytest.raises(WeightsError, match="has format 3, expected 2") as caught:
        open_checkpoint(copy)
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_a_file_outside_of_the_folder_is_never_asked_for(copy):
    files = [FileEntry(**(asdict(f) | {"name": f"../c/{f.name}"})) for f in checked_files(copy)]
    (copy / "manifest.json").unlink()
    write_manifest(copy, files)
    with pytest.raises(DamagedCheckpoint, match=r"manifest\.json is damaged"):
        open_checkpoint(copy)


def test_weights_that_do_not_fit_their_configuration_are_refused(tiny, saved, tmp_path):
    wider = to_dict(override(tiny.config(), {"denoiser.noise_embedding_dim": 32}))
    opened = open_checkpoint(rewritten(shutil.copytree(saved, tmp_path / "a"), config=wider))
    with pytest.raises(WeightsError, match=r"must be \(.*\), got \("):
        opened.network()
    copy = shutil.copytree(saved, tmp_path / "b")
    tensors = load_file(copy / "ema.safetensors")
    left_out = sorted(tensors)[0]
    del tensors[left_out]
    save_file(tensors, copy / "ema.safetensors")
    sign(copy)
    with pytest.raises(WeightsError, match="does not fit its own configuration") as caught:
        open_checkpoint(copy).network()
    assert left_out in str(caught.value)
    config = tiny.config()
    network = initial_network(config)
    with pytest.raises(WeightsError, match="does not fit its own configuration"):
        open_checkpoint(copy).restore(network, Ema(network, config.ema), make_optimizer(network, config.optimizer))

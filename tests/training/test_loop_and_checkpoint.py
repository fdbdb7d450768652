"""The loop and its checkpoints: interrupted + resumed = uninterrupted, and no damaged file is ever used."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from semantica.config import override
from semantica.errors import WeightsError
from semantica.storage import file_sha256
from semantica.training.checkpoint import open_checkpoint
from semantica.training.ema import Ema
from semantica.training.loop import Hooks, fit, initial_network
from semantica.training.step import make_optimizer

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "config.json")


def run(tiny, folder, start=None, **changes):
    """(the trained network, the reports), with every checkpoint saved in folder/STEP."""
    config, reports = tiny.config(**changes), []
    hooks = Hooks(reports.append, lambda step, save: save(folder / str(step)))
    return fit(config, tiny.loader(config), tiny.provenance, hooks, start=start), reports


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """The folder of an uninterrupted run of 6 steps, with checkpoints 3 and 6, its network and its reports."""
    folder = tmp_path_factory.mktemp("trained")
    torch.set_num_threads(1)
    return folder, *run(tiny, folder)


def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(tiny, trained, tmp_path):
    folder, network, reports = trained
    torch.manual_seed(12345)  # another process has another global generator
    resumed, later = run(tiny, tmp_path, start=open_checkpoint(folder / "3"))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), resumed.parameters(), strict=True))
    for name in (*FILES, "manifest.json"):  # weights, average and both moments of Adam
        assert (tmp_path / "6" / name).read_bytes() == (folder / "6" / name).read_bytes()
    assert (later[-1].step, later[-1].loss) == (reports[-1].step, reports[-1].loss)
    assert (folder / "3" / FILES[0]).read_bytes() != (folder / "6" / FILES[0]).read_bytes()


def test_the_same_run_twice_is_the_same_and_another_seed_is_another(tiny, trained, tmp_path):
    folder, *_ = trained
    run(tiny, tmp_path / "again")
    run(tiny, tmp_path / "other", seed=1)
    assert open_checkpoint(tmp_path / "again" / "6").hash == open_checkpoint(folder / "6").hash
    assert file_sha256(tmp_path / "other" / "6" / FILES[0]) != file_sha256(folder / "6" / FILES[0])


def test_reports_come_every_few_steps_with_the_figures_of_the_recipe(tiny, trained):
    _, _, reports = trained
    rate = tiny.config().optimizer.rate
    assert [r.step for r in reports] == [2, 4, 6]
    assert [r.learning_rate for r in reports] == [rate(1, 6), rate(3, 6), rate(5, 6)]
    assert all(0 < r.loss < 10 and r.grad_norm > 0 and r.images_per_second > 0 and 0 <= r.data_wait_share <= 1 for r in reports)


def test_the_last_step_is_reported_and_saved_even_off_the_beat(tiny, tmp_path):
    _, reports = run(tiny, tmp_path, num_steps=5, log_every=3, checkpoint_every=4)
    assert [r.step for r in reports] == [3, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "5"]


def test_a_checkpoint_gives_back_what_was_saved(tiny, trained):
    folder, network, _ = trained
    opened = open_checkpoint(folder / "6")
    assert (opened.step, opened.config, opened.provenance) == (6, tiny.config(), tiny.provenance)
    raw, average = opened.network(ema=False), opened.network()
    assert not average.training
    assert all(torch.equal(a, b) for a, b in zip(raw.parameters(), network.parameters(), strict=True))
    stored = load_file(folder / "6" / "ema.safetensors")
    assert all(torch.equal(p, stored[name]) for name, p in average.named_parameters())
    assert any(not torch.equal(a, b) for a, b in zip(raw.parameters(), average.parameters(), strict=True))


def test_a_resumed_run_that_is_done_trains_no_more(tiny, trained, tmp_path):
    folder, network, _ = trained
    same, reports = run(tiny, tmp_path, start=open_checkpoint(folder / "6"))
    assert reports == []
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize("place", [0.0, 0.01, 0.37, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_any_file_is_refused_by_the_name_of_the_file(trained, tmp_path, name, place):
    copy = shutil.copytree(trained[0] / "3", tmp_path / "c")
    data = bytearray((copy / name).read_bytes())
    data[round(place * (len(data) - 1))] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(copy)
    assert f"{copy / name} is damaged" in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_refused_by_its_name(trained, tmp_path, name):
    copy = shutil.copytree(trained[0] / "3", tmp_path / "c")
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(WeightsError, match=f"{name} is damaged"):
        open_checkpoint(copy)
    (copy / name).unlink()
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        open_checkpoint(copy)


def test_a_folder_without_a_manifest_is_no_checkpoint(trained, tmp_path):
    copy = shutil.copytree(trained[0] / "3", tmp_path / "c")
    (copy / "manifest.json").unlink()
    for folder in (copy, tmp_path / "none"):
        with pytest.raises(WeightsError, match=r"has no manifest\.json, so it is no finished checkpoint"):
            open_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "{}", '{"model.safetensors": "0"}', "[[1, 2, 3]]"])
def test_a_damaged_manifest_is_refused_and_never_taken_for_one_without_files(trained, tmp_path, text):
    copy = shutil.copytree(trained[0] / "3", tmp_path / "c")
    (copy / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match=r"manifest\.json is damaged"):
        open_checkpoint(copy)


def rewritten(folder, target, **changes):
    """A copy whose config.json is changed and whose manifest is true to it."""
    copy = shutil.copytree(folder, target)
    described = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps(described))
    sign(copy)
    return copy


def sign(folder):
    (folder / "manifest.json").write_text(json.dumps({name: file_sha256(folder / name) for name in FILES}))


def test_a_checkpoint_of_another_format_or_configuration_is_refused(trained, tmp_path):
    folder = trained[0] / "3"
    with pytest.raises(WeightsError, match="format 2, expected 1"):
        open_checkpoint(rewritten(folder, tmp_path / "a", format=2))
    with pytest.raises(WeightsError, match="is not a configuration this version reads"):
        open_checkpoint(rewritten(folder, tmp_path / "b", config={"denoise": {}}))
    with pytest.raises(WeightsError, match="is not a configuration this version reads"):
        open_checkpoint(rewritten(folder, tmp_path / "c", step="many"))


def test_weights_that_do_not_fit_their_configuration_are_refused(tiny, trained, tmp_path):
    from semantica.config import to_dict

    wider = to_dict(override(tiny.config(), {"denoiser.noise_embedding_dim": 32}))
    opened = open_checkpoint(rewritten(trained[0] / "3", tmp_path / "a", config=wider))
    with pytest.raises(WeightsError, match=r"must be \(.*\), got \("):
        opened.network()
    copy = shutil.copytree(trained[0] / "3", tmp_path / "b")
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

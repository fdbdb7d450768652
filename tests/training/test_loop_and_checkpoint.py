"""The loop and its checkpoints: interrupted + resumed = uninterrupted."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from semantica.config import to_dict
from semantica.config.identity import differences
from semantica.data.location import file_sha256
from semantica.training.checkpoint import open_checkpoint, write_checkpoint
from semantica.training.loop import Hooks, fit
from semantica.training.recipe import ComputeConfig, KeepConfig

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "config.json")


def run(tiny, folder, start=None, **changes):
    """(the trained network, the reports), with every checkpoint saved in folder/STEP."""
    config, reports = tiny.config(**changes), []
    hooks = Hooks(reports.append, lambda state: write_checkpoint(folder / str(state.step), state.snapshot()))
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


def test_the_losses_are_those_that_were_recorded(trained):
    """By commit f049af4; another processor rounds otherwise, so to 1e-4."""
    _, _, reports = trained
    assert [report.loss for report in reports] == pytest.approx([0.608578, 0.573357, 0.667029], rel=1e-4)
    assert [report.grad_norm for report in reports] == pytest.approx([0.0638795, 0.0649909, 0.0692778], rel=1e-4)


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


FREE_TO_THE_BIT = {
    "prefetch": {"prefetch": 0},
    "reports": {"log_every": 1, "sample_every": 2, "num_samples": 1, "peak_tflops": 1.0},
    "saving": {"checkpoint_every": 1, "keep": KeepConfig(last=1, best=2, every_steps=2)},
    "patience": {"max_skipped": 1},
    "recompute": {"compute": ComputeConfig(recompute="all")},
}


@pytest.mark.parametrize("name", FREE_TO_THE_BIT)
def test_what_is_free_may_change_when_training_resumes_and_no_bit_of_the_state_does(tiny, trained, tmp_path, name):
    folder, *_ = trained
    changes = FREE_TO_THE_BIT[name]
    assert not differences(to_dict(tiny.config()), tiny.config(**changes))
    run(tiny, tmp_path, start=open_checkpoint(folder / "3"), **changes)
    for file in FILES[:3]:
        assert (tmp_path / "6" / file).read_bytes() == (folder / "6" / file).read_bytes()


FREE_BUT_FOR_ROUNDING = {
    "micro_batch_size": {"micro_batch_size": 3},
    "channels_last": {"compute": ComputeConfig(channels_last=False)},
}


@pytest.mark.parametrize("name", FREE_BUT_FOR_ROUNDING)
def test_what_is_free_but_for_rounding_trains_alike_up_to_rounding(tiny, tmp_path, name):
    """In losses and norms: Adam makes a full step of a gradient that is rounding alone. Without dropout, whose masks differ."""
    stages = tuple(replace(stage, dropout=0.0) for stage in tiny.config().denoiser.stages)
    same = {"denoiser": replace(tiny.config().denoiser, stages=stages), "log_every": 1}
    changes = FREE_BUT_FOR_ROUNDING[name]
    assert not differences(to_dict(tiny.config()), tiny.config(**changes))
    _, reports = run(tiny, tmp_path / "a", **same)
    _, later = run(tiny, tmp_path / "b", start=open_checkpoint(tmp_path / "a" / "3"), **same, **changes)
    assert [report.loss for report in later] == pytest.approx([report.loss for report in reports[3:]], rel=1e-4)
    assert [report.grad_norm for report in later] == pytest.approx([report.grad_norm for report in reports[3:]], rel=1e-3)


def test_a_training_that_is_made_longer_is_one_that_was_long_from_the_start(tiny, trained, tmp_path):
    folder, *_ = trained
    run(tiny, tmp_path / "long", num_steps=9)
    run(tiny, tmp_path / "made", start=open_checkpoint(folder / "6"), num_steps=9)
    for file in (*FILES, "manifest.json"):
        assert (tmp_path / "made" / "9" / file).read_bytes() == (tmp_path / "long" / "9" / file).read_bytes()

"""Training from the weights of another model, and a finished training that is made longer."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from semantica.data.location import file_sha256
from semantica.errors import ConfigError, FieldError, WeightsError
from semantica.training.checkpoint import Keeper, open_checkpoint, write_checkpoint
from semantica.training.loop import Hooks, fit
from semantica.training.recipe import KeepConfig, OptimizerConfig, TrainConfig
from semantica.training.start import cooldown_note, initial_weights, make_resumable, steps_done


@pytest.fixture(scope="module")
def earlier(tiny, tmp_path_factory):
    """The output of a training of 6 steps: checkpoints of steps 3 and 6, and the last one as its model."""
    output = tmp_path_factory.mktemp("earlier")
    train(tiny, output, tiny.config(checkpoint_every=3))
    return output


def train(tiny, output, config, start=None):
    """Train to the end; every checkpoint into output/checkpoints, the last one into output/model too."""
    keeper = Keeper(output / "checkpoints", KeepConfig())
    hooks = Hooks(lambda report: None, lambda state: write_checkpoint(keeper.folder_of(state.step), state.snapshot()))
    keeper.folder.mkdir(parents=True, exist_ok=True)
    network = fit(config, tiny.loader(config), tiny.provenance, hooks, start=start)
    shutil.rmtree(output / "model", ignore_errors=True)
    shutil.copytree(keeper.folder_of(config.num_steps), output / "model")
    return network


def release(folder, checkpoint):
    """A release as `generation.release` writes it, as far as training reads it."""
    folder.mkdir()
    save_file({name: p.detach().contiguous() for name, p in checkpoint.network().named_parameters()}, folder / "model.safetensors")
    config = json.loads((checkpoint.folder / "config.json").read_text())["config"]
    described = {"library": "semantica", "weights_sha256": file_sha256(folder / "model.safetensors")}
    described |= {"denoiser": config["denoiser"], "prediction": config["prediction"], "encoder": {"identity": {}}}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def still(tiny, **changes):
    """A configuration of one step that moves no weight by more than rounding."""
    return tiny.config(num_steps=1, optimizer=OptimizerConfig(learning_rate=1e-30, warmup_steps=0), **changes)


@pytest.mark.parametrize(
    ("place", "weights"), [("", "ema"), ("model", "ema"), ("checkpoints/step-000000003", "ema"), ("", "raw"), ("release", "ema")]
)
def test_training_begins_with_the_weights_of_a_checkpoint_an_output_or_a_release(tiny, earlier, tmp_path, place, weights):
    source = open_checkpoint(earlier / ("checkpoints/step-000000003" if "step" in place else "model"))
    folder = release(tmp_path / "release", source) if place == "release" else earlier / place
    config = still(tiny, init_from=str(folder), init_weights=weights, seed=7)
    train(tiny, tmp_path / "out", config, start=initial_weights(config))
    ended = open_checkpoint(tmp_path / "out" / "model")
    expected = dict(source.network(ema=weights == "ema").named_parameters())
    assert ended.step == 1
    assert ended.num_optimizer_updates == 1
    assert ended.num_ema_updates == 1
    for kind in (False, True):  # the average begins at the same weights
        for name, value in ended.network(ema=kind).named_parameters():
            assert torch.equal(value, expected[name]), name


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The empty cache of a hub that cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_release_is_named_as_on_a_hub_and_a_folder_of_that_name_goes_before_it(tiny, earlier, tmp_path, hub_cache, monkeypatch):
    repository = hub_cache / "models--someone--their-model"  # as a download leaves it
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    folder = release(repository / "snapshots" / ("0" * 40), open_checkpoint(earlier / "model"))
    found = initial_weights(tiny.config(init_from="someone/their-model"))
    assert found == initial_weights(tiny.config(init_from=str(folder)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    other = release(tmp_path / "someone" / "their-model", open_checkpoint(earlier / "checkpoints/step-000000003"))
    assert initial_weights(tiny.config(init_from="someone/their-model")).folder == other


def test_a_hub_that_cannot_be_reached_is_said_with_what_to_do(tiny, hub_cache):
    with pytest.raises(FieldError) as caught:
        initial_weights(tiny.config(init_from="someone/their-model"))
    assert (caught.value.owner, caught.value.field) == (TrainConfig, "init_from")
    told = str(caught.value)
    assert told.startswith("init_from must be a folder or the ORG/NAME of a release: no folder someone/their-model, and the hub's")
    assert told.endswith("check name and network, or download the model on another machine and give its folder")


def test_a_training_from_other_weights_resumes_bit_for_bit(tiny, earlier, tmp_path):
    config = tiny.config(init_from=str(earlier), checkpoint_every=2)
    train(tiny, tmp_path / "whole", config, start=initial_weights(config))
    half = open_checkpoint(tmp_path / "whole" / "checkpoints" / "step-000000002")
    train(tiny, tmp_path / "resumed", config, start=half)
    assert open_checkpoint(tmp_path / "resumed" / "model").hash == open_checkpoint(tmp_path / "whole" / "model").hash
    fresh = tiny.config(checkpoint_every=2)
    train(tiny, tmp_path / "random", fresh)
    raw = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "random")]
    assert not all(torch.equal(raw[0][name], raw[1][name]) for name in raw[0])


def test_the_hash_of_the_weights_is_that_of_the_checkpoint_or_of_the_released_file(tiny, earlier, tmp_path):
    checkpoint = open_checkpoint(earlier / "model")
    assert initial_weights(tiny.config(init_from=str(earlier))).hash == checkpoint.hash
    folder = release(tmp_path / "release", checkpoint)
    assert initial_weights(tiny.config(init_from=str(folder))).hash == file_sha256(folder / "model.safetensors")
    assert initial_weights(tiny.config()) is None


def test_weights_of_another_denoiser_are_refused_with_what_differs(tiny, earlier):
    initial = initial_weights(tiny.config(init_from=str(earlier)))
    initial.check_fit(tiny.config().denoiser)
    stages = tiny.config().denoiser.stages
    other = replace(tiny.config().denoiser, stages=(stages[0], replace(stages[1], channels=24)))
    with pytest.raises(ConfigError) as caught:
        initial.check_fit(other)
    message = str(caught.value)
    assert message.startswith(f"init_from must hold the weights of this denoiser, but tensors of {earlier / 'model'} differ (")
    assert "is (16, " in message
    assert "expected (24, " in message
    assert "(settings that differ: stages.1.channels: was 16, now 24)" in message
    more = replace(tiny.config().denoiser, similarity=True)
    with pytest.raises(ConfigError, match=r"is missing, expected \(.*similarity: was false, now true"):
        initial.check_fit(more)


def test_a_setting_that_changes_no_tensor_may_differ(tiny, earlier):
    stages = tuple(replace(stage, dropout=0.0) for stage in tiny.config().denoiser.stages)
    initial_weights(tiny.config(init_from=str(earlier))).check_fit(replace(tiny.config().denoiser, stages=stages))


def test_another_prediction_and_another_encoder_are_said(tiny, earlier):
    initial = initial_weights(tiny.config(init_from=str(earlier)))
    same = {"weights_sha256": initial.model["encoder_sha256"]}
    assert initial.notes(tiny.config(), same) == []
    notes = initial.notes(tiny.config(prediction="eps"), {"weights_sha256": "other"})
    assert [note.partition("model ")[2] for note in notes] == [
        "predict v, this training eps",
        "were trained with another encoder than these encodings",
    ]


def test_what_is_no_model_and_what_is_damaged_is_refused(tiny, earlier, tmp_path):
    with pytest.raises(ConfigError, match=r"^init_from must be a checkpoint, the output of semantica train or a release, got"):
        initial_weights(tiny.config(init_from=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(ConfigError, match="name one of these"):
        initial_weights(tiny.config(init_from=str(tmp_path)))
    folder = release(tmp_path / "release", open_checkpoint(earlier / "model"))
    with pytest.raises(ConfigError, match="is a release, got 'raw'"):
        initial_weights(tiny.config(init_from=str(folder), init_weights="raw"))
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="is damaged"):
        initial_weights(tiny.config(init_from=str(folder)))
    shutil.copytree(earlier / "model", tmp_path / "copy")
    data = bytearray((tmp_path / "copy" / "ema.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "copy" / "ema.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="is damaged"):
        initial_weights(tiny.config(init_from=str(tmp_path / "copy")))


def test_an_output_knows_the_steps_that_it_has_done(earlier, tmp_path):
    assert steps_done(earlier) == 6
    assert steps_done(tmp_path) == 0
    shutil.copytree(earlier / "checkpoints" / "step-000000003", tmp_path / "a" / "model")
    assert steps_done(tmp_path / "a") == 3
    (tmp_path / "a" / "model" / "config.json").write_text('{"another": "tool"}')
    assert steps_done(tmp_path / "a") == 0


def test_a_finished_training_resumes_from_its_model_once_its_checkpoints_are_gone(tiny, earlier, tmp_path):
    shutil.copytree(earlier / "model", tmp_path / "out" / "model")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out" / "model").iterdir()}
    for _ in range(2):
        make_resumable(tmp_path / "out")
    keeper = Keeper(tmp_path / "out" / "checkpoints", KeepConfig())
    assert keeper.steps() == [6]
    assert keeper.resume().hash == open_checkpoint(earlier / "model").hash
    train(tiny, tmp_path / "longer", tiny.config(num_steps=9), start=keeper.newest())
    train(tiny, tmp_path / "whole", tiny.config(num_steps=9))
    assert open_checkpoint(tmp_path / "longer" / "model").hash == open_checkpoint(tmp_path / "whole" / "model").hash
    assert {p.name: p.read_bytes() for p in (tmp_path / "out" / "model").iterdir()} == before
    make_resumable(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_cool_down_that_was_begun_is_said_when_the_length_changes(tiny, earlier, tmp_path):
    assert cooldown_note(earlier, tiny.config(num_steps=9)) == ""  # its rate is constant
    cool = replace(tiny.config().optimizer, cooldown_steps=2)
    output = tmp_path / "out"
    train(tiny, output, tiny.config(optimizer=cool, checkpoint_every=3))
    assert cooldown_note(output, tiny.config(optimizer=cool)) == ""
    note = cooldown_note(output, tiny.config(optimizer=cool, num_steps=9))
    assert note.startswith("steps 6 to 6 had the learning rates of a training of 6 steps, cool-down included")
    shutil.rmtree(output / "model")
    shutil.rmtree(output / "checkpoints" / "step-000000006")
    assert cooldown_note(output, tiny.config(optimizer=cool, num_steps=9)) == ""  # step 3 is before the cool-down of both
    assert cooldown_note(output, tiny.config(optimizer=cool, num_steps=3)).startswith("steps 3 to 3 had the learning rates of a ")
    assert cooldown_note(tmp_path / "none", tiny.config()) == ""

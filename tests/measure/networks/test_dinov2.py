import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import Dinov2Config, Dinov2Model

from semantica.errors import AbsentWeights, WeightsError
from semantica.measure.networks import dinov2
from semantica.measure.networks.dinov2 import find_dinov2, load_dinov2, positions_for, prepare


def tiny(image_px):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    return Dinov2Model(Dinov2Config(image_size=image_px, **shape)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A DINOv2 in the hub's format, with a table of positions for 518 px, as the published ones have."""
    path = tmp_path_factory.mktemp("hub") / "dinov2-large"
    tiny(518).save_pretrained(path)
    return path


def pictures(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(64, 64), (37, 51), (224, 224), (400, 320)])
def test_the_preprocessing_equals_torchvisions_on_pillow_pictures(size):
    images = pictures(2, 3, *size)
    transform = v2.Compose(
        [
            v2.Resize((224, 224), v2.InterpolationMode.BICUBIC),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    expected = torch.stack([transform(Image.fromarray(i.permute(1, 2, 0).numpy())) for i in images])
    torch.testing.assert_close(prepare(images), expected, rtol=0, atol=1e-6)


def test_features_are_the_cls_token_after_the_final_norm(tmp_path):
    model = tiny(224)  # its table fits, so that transformers does not touch it
    model.save_pretrained(tmp_path)
    x = prepare(pictures(2, 3, 64, 64))
    with torch.inference_mode():
        torch.testing.assert_close(load_dinov2(tmp_path)(x), model(pixel_values=x).pooler_output)


def test_the_table_of_positions_is_read_where_dinov2s_own_code_reads_it():
    # Position i of 16 is read at x = (i + 1/2) · 37 / 16.1 - 1/2. On a straight line, torch's bicubic kernel (a = -3/4) gives
    # x - t (1 - t) (2 t - 1) / 2 with t the part of x after the point.
    ramp = torch.arange(37.0)
    grid = torch.stack([ramp[:, None].expand(37, 37), ramp[None].expand(37, 37)], dim=-1)
    table = torch.cat([torch.full((1, 1, 2), 99.0), grid.reshape(1, -1, 2)], dim=1)
    shrunk = positions_for(table, 16)
    assert torch.equal(shrunk[:, :1], table[:, :1])
    rows, columns = shrunk[0, 1:].reshape(16, 16, 2).unbind(-1)
    at = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    t = at - at.floor()
    expected = at - t * (1 - t) * (2 * t - 1) / 2
    inside = slice(1, 15)  # the outermost read repeated pixels beyond the border
    torch.testing.assert_close(rows[inside, inside], expected[inside, None].expand(14, 14), rtol=0, atol=1e-4)
    torch.testing.assert_close(columns[inside, inside], expected[None, inside].expand(14, 14), rtol=0, atol=1e-4)


def test_the_model_adds_that_table(folder):
    network = load_dinov2(folder)
    own = tiny(518).embeddings.position_embeddings
    x = prepare(pictures(1, 3, 64, 64))
    with torch.inference_mode():
        embeddings = network.model.embeddings
        patches = embeddings.patch_embeddings(x)
        tokens = torch.cat([embeddings.cls_token, patches], dim=1) + positions_for(own, 16)
        torch.testing.assert_close(embeddings(x), tokens)


def test_a_picture_that_is_not_square_is_squashed(folder):
    network = load_dinov2(folder)
    wide = pictures(1, 3, 32, 64)
    squashed = Image.fromarray(wide[0].permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    with torch.inference_mode():
        features = network(prepare(wide))
        again = network(prepare(torch.from_numpy(np.array(squashed)).permute(2, 0, 1)[None]))
    assert features.shape == (1, 16)
    assert torch.equal(features, again)


def test_other_weights_are_refused_with_both_hashes(folder):
    for given in (folder, folder.parent):
        with pytest.raises(WeightsError, match=rf"expected SHA-256 {dinov2.WEIGHTS.sha256} of .*, got [0-9a-f]{{64}}"):
            find_dinov2(local_folder=str(given))


def test_absent_weights_are_named_with_hash_size_and_place(tmp_path, no_weights):
    with pytest.raises(
        AbsentWeights, match=r"model\.safetensors \(SHA-256 399fba97.*, 1,217,522,888 bytes\), got none; put "
    ) as error:
        find_dinov2(local_folder=str(tmp_path))
    assert str(tmp_path / "dinov2-large") in str(error.value)


def test_what_the_hubs_own_cache_holds_is_found_without_the_network(folder, no_weights):
    snapshot = no_weights / "hub" / "models--facebook--dinov2-large" / "snapshots" / dinov2.REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(AbsentWeights, match="got none; put"):  # fetched by something that wanted the configuration only
        find_dinov2()
    (snapshot / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=rf"of {snapshot}/model\.safetensors, got .* so it is not loaded"):
        find_dinov2()


def test_a_hub_that_cannot_be_reached_is_a_sentence(no_weights, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_OFFLINE", True
    )  # as the environment variable: fails at once, not after retries
    with pytest.raises(AbsentWeights, match=r"cannot be fetched \(.+\); put config\.json and model\.safetensors of facebook"):
        find_dinov2(allow_network=True)


def test_weights_without_their_configuration_are_no_folder(folder, no_weights, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(AbsentWeights, match=r"expected config\.json beside .*, got none; put config\.json and"):
        find_dinov2(local_folder=str(tmp_path))


@pytest.mark.parametrize("damage", ["truncated", "a part"])
def test_a_damaged_folder_is_a_sentence(folder, tmp_path, damage):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if damage == "truncated":
        (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(tmp_path / "model.safetensors")
        save_file({n: t for n, t in tensors.items() if "layer.1" not in n}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"(cannot load|not a whole checkpoint).*put config\.json and model\.safetensors"):
        load_dinov2(tmp_path)

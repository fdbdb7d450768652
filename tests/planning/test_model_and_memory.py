"""What the plan says of networks: against torch's counter around real modules, shapes in closed form, memory that really grew."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model

from benchmarks.measure import in_a_process
from benchmarks.plan import counted_drawing, counted_encoding, counted_step, grown_bytes
from semantica.config import override
from semantica.encoders.settings import EncoderConfig
from semantica.errors import ConfigError
from semantica.planning.memory import example_bytes, smallest_change, training_memory
from semantica.planning.model import VitShape, denoiser_costs, encoder_shape
from semantica.presets import preset


@pytest.mark.parametrize("recompute", ["none", "transformer", "all"])
def test_flops_of_a_real_training_step_are_the_planned_ones_within_two_percent(recompute):
    train = override(preset("tiny").train, {"compute.recompute": recompute})
    costs = denoiser_costs(train.denoiser, train.compute)
    assert costs.step_flops == pytest.approx(counted_step(train, 2), rel=0.02)
    assert (costs.recomputed_flops > 0) is (recompute != "none")


def test_flops_of_drawing_a_picture_by_the_projects_sampler_are_the_planned_ones():
    train = preset("tiny").train
    assert denoiser_costs(train.denoiser, train.compute).drawing_flops(3, 2) == pytest.approx(counted_drawing(train), rel=0.02)


@pytest.mark.parametrize(("width", "layers", "patch", "px"), [(768, 12, 14, 224), (1024, 24, 14, 224), (384, 12, 14, 112)])
def test_flops_and_parameters_of_the_encoder_agree_with_a_count_within_two_percent(width, layers, patch, px):
    settings = Dinov2Config(hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, patch_size=patch)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = Dinov2Model(settings)
        model(pixel_values=torch.empty(1, 3, px, px))
    shape = VitShape(width, layers, patch, True)
    assert shape.flops(px) == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert shape.num_parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.03)


def test_flops_of_siglip_count_its_attention_pooling():
    weights = "google/siglip-base-patch16-224"
    assert encoder_shape(EncoderConfig(weights=weights)).flops(224) == pytest.approx(counted_encoding(weights, 224), rel=0.02)


def test_a_local_checkpoint_is_read_and_an_unknown_name_or_another_file_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "siglip", "vision_config": {"hidden_size": 32, "num_hidden_layers": 2, "patch_size": 16}}')
    assert encoder_shape(EncoderConfig(weights=str(tmp_path))) == VitShape(32, 2, 16, False, pools=True)
    with pytest.raises(ConfigError, match="facebook/dinov2-base"):
        encoder_shape(EncoderConfig(weights="someone/else"))
    path.write_text('{"model_type": "resnet"}')
    with pytest.raises(ConfigError, match="hidden_size"):
        encoder_shape(EncoderConfig(weights=str(tmp_path)))


@pytest.mark.parametrize("batch", [16, 64])
def test_memory_of_two_real_training_steps_is_the_planned_one_within_fifteen_percent(batch):
    train = override(preset("tiny").train, {"batch_size": batch, "num_lanes": 1})
    assert training_memory(train, 1).total == pytest.approx(in_a_process(grown_bytes, train), rel=0.15)


def test_activations_grow_with_the_rows_and_shrink_by_micro_batches_and_recomputation():
    train = override(preset("tiny").train, {"batch_size": 64, "num_lanes": 1})
    whole, half = training_memory(train, 1), training_memory(replace(train, micro_batch_size=32), 1)
    assert (whole.rows, half.rows) == (64, 32)
    assert 1.8 < whole.working / half.working < 2.2
    assert whole.batches == half.batches == 3 * 64 * example_bytes(train.denoiser)
    least = training_memory(override(train, {"compute.recompute": "all"}), 1)
    assert least.working < 0.6 * whole.working
    assert least.state == whole.state


def test_weights_that_are_shared_out_leave_the_activations_as_they_are():
    train = override(preset("tiny").train, {"batch_size": 64, "micro_batch_size": 4})
    alone, shared = training_memory(train, 4), training_memory(override(train, {"compute.parallel": "fsdp"}), 4)
    assert shared.state.weights == pytest.approx(alone.state.weights / 4, rel=0.05)
    assert shared.rows == alone.rows == 4
    assert shared.working == alone.working


def test_what_does_not_fit_is_made_to_fit_by_the_mildest_change():
    train = override(preset("tiny").train, {"batch_size": 64, "num_lanes": 1})
    needed = training_memory(train, 1)
    change = smallest_change(train, 1, 0.8 * needed.total)
    assert change is not None
    assert change.flags == "--train.micro-batch-size 32"
    assert change.memory.fits(0.8 * needed.total)
    change = smallest_change(train, 1, (needed.state.total + needed.batches) * 1.15)
    assert change is not None
    assert "--train.compute.recompute" in change.flags
    assert smallest_change(train, 1, needed.state.total) is None

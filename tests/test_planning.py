"""The plan's arithmetic against the design's figures, against a counted transformer, and against bytes on disk."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model

from semantica.config import override
from semantica.datasets import StageOutput
from semantica.encoders.encoder import EncoderConfig
from semantica.errors import ConfigError
from semantica.planning import PlanConfig, VitShape, encoder_shape, plan_data, rows, size
from semantica.presets import preset


@pytest.mark.parametrize(("width", "layers", "patch", "px"), [(768, 12, 14, 224), (1024, 24, 14, 224), (384, 12, 14, 112)])
def test_flops_of_the_encoder_agree_with_a_count_within_two_percent(width, layers, patch, px):
    settings = Dinov2Config(hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, patch_size=patch)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        Dinov2Model(settings)(pixel_values=torch.empty(1, 3, px, px))
    assert VitShape(width, layers, patch, True).flops(px) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_paper_at_a_billion_pictures_has_the_designs_figures():
    plan = plan_data(preset("base"), PlanConfig(num_images=10**9, num_devices=1))
    assert plan.token_bytes == 257 * 768 * 2
    assert size(10**9 * plan.token_bytes) == "395 TB"
    assert size(10**9 * plan.pooled_bytes) == "1.54 TB"
    assert plan.precomputed.training_images_per_second == pytest.approx(326, rel=0.02)
    assert (plan.on_the_fly.train_hours / plan.precomputed.train_hours - 1) == pytest.approx(0.05, abs=0.01)
    assert plan.precomputed.stored_bytes - plan.on_the_fly.stored_bytes == pytest.approx(10**9 * plan.token_bytes)


def test_bytes_of_a_finished_stage_are_used_where_there_is_one(make, tmp_path):
    stage = StageOutput(tmp_path / "episodes", "episodes", {"image": {"image_px": 64}})
    stage.open()
    stage.write_shard("part-0", {"": make.episodes([3, 4, 5])}, {})
    manifest = stage.finish({"num_train_images": 12, "num_held_out_images": 0, "num_train_episodes": 3}, {})
    plan = plan_data(preset("tiny"), PlanConfig(num_images=1200), manifest)
    on_disk = (tmp_path / "episodes" / "part-0.parquet").stat().st_size
    assert plan.episodes_bytes == pytest.approx(100 * on_disk)
    assert plan.measured
    with pytest.raises(ConfigError, match="64 px, the plan's 256"):
        plan_data(preset("base"), PlanConfig(), manifest)


def test_a_local_checkpoint_is_read_and_an_unknown_name_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "siglip", "vision_config": {"hidden_size": 32, "num_hidden_layers": 2, "patch_size": 16}})
    )
    assert encoder_shape(EncoderConfig(weights=str(tmp_path))) == VitShape(32, 2, 16, False)
    with pytest.raises(ConfigError, match="facebook/dinov2-base"):
        encoder_shape(EncoderConfig(weights="someone/else"))


def test_the_job_prints_both_ways_and_every_figure_as_json(capsys):
    from jobs.plan import main

    assert main(["--num-images", "1000000", "--num-devices", "8"]) == 0
    shown = capsys.readouterr().out
    assert "395 GB" not in shown  # tokens are inside the total, not a figure alone
    for text in ("1,000,000 pictures, estimated", "395 KB", "on the fly", "images/s"):
        assert text in shown
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["token_bytes"] == 257 * 768 * 2
    assert main(["--episodes", "/nowhere"]) == 2


def test_rows_name_the_extra_time_of_encoding_in_training():
    plan = plan_data(override(preset("base"), {"train.batch_size": 1024}), PlanConfig())
    assert "(+4." in rows(plan)[-1][2] or "(+5." in rows(plan)[-1][2]

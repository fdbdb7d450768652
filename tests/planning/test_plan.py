"""The whole plan: its arithmetic by hand, what it says of what does not fit, and what the job prints."""

import json
import math

import pytest

from semantica.config import override
from semantica.errors import ConfigError
from semantica.jobs.plan import main
from semantica.planning.machines import PlanConfig, PriceConfig
from semantica.planning.plan import make_plan
from semantica.planning.sizes import count, hours, size
from semantica.presets import preset


def _stage(plan, name):
    return next(stage for stage in plan.stages if stage.name == name)


def _warned(plan, *words):
    return any(all(word in warning for word in words) for warning in plan.warnings)


@pytest.fixture(scope="module")
def base():
    return make_plan(preset("base"), PlanConfig(num_devices=64))


def test_hours_of_training_are_flops_over_what_the_devices_reach(base):
    seen = 300_000 * 2048
    expected = seen * base.denoiser.training_flops / (64 * 790e12 * 0.4) / 3600
    assert _stage(base, "train").hours == pytest.approx(expected)
    assert base.precomputed.images_s == pytest.approx(64 * 326, rel=0.02)
    assert base.on_the_fly.hours / base.precomputed.hours - 1 == pytest.approx(0.05, abs=0.01)


def test_a_stage_takes_as_long_as_the_slowest_of_machines_network_and_driver():
    config = preset("base")
    slow = make_plan(config, PlanConfig(num_devices=64, network_gbit=0.001))
    assert {stage.limit for stage in slow.stages if stage.reads} == {"network"}
    read = _stage(slow, "encode")
    assert read.hours * 3600 == pytest.approx(slow.data.episodes / slow.config.network_bytes_s)
    many = override(config, {"ingest.read.pages_per_part": 1})
    driven = _stage(make_plan(many, PlanConfig(num_devices=64)), "encode")
    assert driven.limit == "driver"
    assert driven.hours * 3600 == pytest.approx(10**9 / 8 * PlanConfig().driver_ms / 1000, rel=0.01)
    assert driven.waits > 0.9


def test_measured_rates_take_the_place_of_flops(base):
    plan = make_plan(preset("base"), PlanConfig(num_devices=64, train_images_s=100.0, encode_pictures_s=50.0, driver_ms=0.001))
    assert plan.precomputed.images_s == pytest.approx(6400)
    assert plan.on_the_fly.images_s / plan.precomputed.images_s == pytest.approx(
        base.on_the_fly.images_s / base.precomputed.images_s
    )
    assert _stage(plan, "encode").hours * 3600 == pytest.approx(10**9 / (64 * 50))


def test_costs_are_hours_times_prices_and_none_without_prices(base):
    prices = PriceConfig(device_hour=2.0, cpu_hour=0.05, gb_month=0.02, egress_gb=0.01)
    plan = make_plan(preset("base"), PlanConfig(num_devices=64, prices=prices))
    train, ingest = _stage(plan, "train"), _stage(plan, "ingest")
    assert train.cost == pytest.approx(train.unit_hours * 2 + train.reads / 1e9 * 0.01)
    assert ingest.cost == pytest.approx(ingest.hours * 1024 * 0.05)
    stored = sum(stage.stored for stage in plan.stages) / 1e9
    assert plan.storage_cost == pytest.approx(stored * 0.02 * (1 + plan.hours / 730))
    assert plan.cost == pytest.approx(sum(stage.cost for stage in plan.stages) + plan.storage_cost)
    assert base.cost == 0


@pytest.mark.parametrize("conditioning", ["both", "film"])
def test_another_encoder_needs_all_three_of_its_sizes(conditioning):
    small = override(preset("tiny"), {"train.denoiser.conditioning": conditioning, "encode.encoder.image_px": 224})
    wanted = override(small, {"encode.encoder.weights": "facebook/dinov2-large"})
    flags = "--train.denoiser.num-tokens 257 --train.denoiser.token-dim 1024 --train.denoiser.pooled-dim 1024"
    assert _warned(make_plan(wanted, PlanConfig(num_devices=1)), flags)
    sizes = {f"train.denoiser.{field}": value for field, value in (("token_dim", 1024), ("num_tokens", 257))}
    assert _warned(make_plan(override(wanted, sizes), PlanConfig(num_devices=1)), flags)
    fits = override(wanted, sizes | {"train.denoiser.pooled_dim": 1024})
    assert not _warned(make_plan(fits, PlanConfig(num_devices=1)), "the denoiser takes")


@pytest.mark.parametrize(("host_gb", "parallel", "warned"), [(16.0, "ddp", False), (4.0, "ddp", True), (16.0, "fsdp", False)])
def test_a_save_needs_room_on_its_host_for_what_it_copies(host_gb, parallel, warned):
    settings = override(preset("base"), {"train.compute.parallel": parallel})
    plan = make_plan(settings, PlanConfig(num_devices=64, devices_per_host=8, host_gb=host_gb))
    assert _warned(plan, "a save copies") == warned  # 7.4 GB with DDP, of the first worker alone


def test_what_fits_is_not_warned_of():
    plan = make_plan(preset("base"), PlanConfig(num_images=10_000_000, num_devices=64, num_cpus=64))
    assert [w for w in plan.warnings if "epoch" not in w and "drawn" not in w] == []


def test_a_model_that_does_not_fit_comes_with_flags_that_make_it_fit():
    one = PlanConfig(num_devices=1, device_gb=0.2)
    plan = make_plan(preset("tiny"), one)
    assert _warned(plan, "training needs", "200 MB", "--train.micro-batch-size")
    flags = next(w for w in plan.warnings if "training needs" in w).split("with ")[1].split(" it is")[0].split()
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    changes = {flag.removeprefix("--").replace("-", "_"): int(v) if v.isdigit() else v for flag, v in given.items()}
    assert not _warned(make_plan(override(preset("tiny"), changes), one), "training needs")


def test_a_model_that_no_change_makes_fit_is_said_to_need_more_devices():
    assert _warned(make_plan(preset("tiny"), PlanConfig(num_devices=1, device_gb=0.05)), "training needs", "use more devices")


def test_lanes_workers_tokens_and_precision_are_looked_at():
    assert _warned(make_plan(preset("tiny"), PlanConfig(num_devices=6)), "6 workers", "use 4 workers")
    assert _warned(make_plan(preset("tiny"), PlanConfig(num_devices=16)), "16 workers", "--train.num-lanes 16")
    assert not _warned(make_plan(preset("tiny"), PlanConfig(num_devices=8, devices_per_worker=4)), "--train.num-lanes")
    assert _warned(make_plan(preset("tiny"), PlanConfig(num_devices=64)), "64 devices for a batch of 32")
    other = override(preset("tiny"), {"encode.encoder.weights": "facebook/dinov2-large"})
    assert _warned(make_plan(other, PlanConfig(num_devices=1)), "--train.denoiser.token-dim 1024")
    assert _warned(make_plan(preset("tiny"), PlanConfig(num_devices=1)), "bfloat16")
    assert not _warned(make_plan(preset("tiny"), PlanConfig(num_devices=1, tflops=0.1)), "bfloat16")


def test_network_disk_loader_and_epochs_are_looked_at():
    narrow = make_plan(preset("base"), PlanConfig(num_devices=64, network_gbit=5.0, disk_tb=100.0))
    assert _warned(narrow, "training reads", "--encode.no-store-tokens")
    assert _warned(narrow, "the disk has 100 TB", "--encode.no-store-tokens saves")
    assert _warned(make_plan(preset("base"), PlanConfig(num_devices=64, loader_pictures_s=100.0)), "--cluster.loader-threads")
    assert _warned(make_plan(preset("base"), PlanConfig(num_devices=64, num_images=100_000)), "by heart")


def test_settings_that_make_no_sense_are_refused():
    for values in ({"num_devices": 0}, {"utilisation": 1.5}, {"network_gbit": 0.0}, {"disk_tb": 0.0}, {"devices_per_worker": 3}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            PlanConfig(**values)
    with pytest.raises(ConfigError, match=r"gb_month must be 0 or more"):
        PriceConfig(gb_month=-1.0)


def test_the_job_prints_tables_and_warnings_and_every_figure_as_json(capsys):
    assert main(["--preset", "tiny", "--num-images", "1000000", "--num-devices", "6", "--prices.device-hour", "2"]) == 0
    shown = capsys.readouterr().out
    for text in ("1,000,000 pictures, estimated", "6 devices", "optimizer", "on the fly", "limit", "does not fit: 6 workers"):
        assert text in shown
    assert main(["--json", "--num-devices", "64"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["data"]["token_bytes"] == 257 * 768 * 2
    assert math.isclose(told["hours"], sum(stage["hours"] for stage in told["stages"]))
    assert main(["--episodes", "/nowhere"]) == 2
    assert "run semantica ingest first" in capsys.readouterr().err


def test_numbers_for_a_person():
    assert [size(n) for n in (999, 1e3, 395e12, 999.7e9)] == ["999 B", "1 KB", "395 TB", "1 TB"]
    assert [count(n) for n in (12, 463e6, 955e9)] == ["12", "463 M", "955 G"]
    assert [hours(n) for n in (1 / 3600, 0.5, 10, 100)] == ["1 s", "30 min", "10.0 h", "4.2 days"]

"""The files of clusters for `ray up`, read by Ray's own schema code, and what must hold of them beyond it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = {"gcp": ROOT / "cluster.yaml", "aws": ROOT / "clusters" / "aws.yaml"}


def read(provider: str) -> dict[str, Any]:
    """The file as YAML says it."""
    values: dict[str, Any] = yaml.safe_load(FILES[provider].read_text())
    return values


@pytest.fixture(params=FILES)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


def test_rays_schema_takes_the_file(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_rays_schema_refuses_a_misspelt_field_of_a_node_type(cluster: dict[str, Any]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster["available_node_types"]["gpu-encode"]["max_worker"] = 3
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(cluster))


def test_there_is_a_node_type_for_every_stage() -> None:
    assert list(read("gcp")["available_node_types"]) == ["head", "cpu", "gpu-encode", "gpu-train", "tpu"]
    assert list(read("aws")["available_node_types"]) == ["head", "cpu", "gpu-encode", "gpu-train"]


def test_the_head_takes_no_tasks_and_workers_come_only_when_asked_for(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    workers = {name: kind for name, kind in types.items() if name != "head"}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] <= cluster["max_workers"] for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) <= cluster["max_workers"]


@pytest.mark.parametrize(
    ("provider", "key", "spot"),
    [("gcp", "scheduling", {"provisioningModel": "SPOT"}), ("aws", "InstanceMarketOptions", {"MarketType": "spot"})],
)
def test_encoding_is_on_spot_machines_and_training_is_not(provider: str, key: str, spot: dict[str, str]) -> None:
    types = read(provider)["available_node_types"]
    for name in ("cpu", "gpu-encode"):
        assert spot.items() <= types[name]["node_config"][key].items()
    for name in ("head", "gpu-train"):
        assert not spot.items() <= types[name]["node_config"].get(key, {}).items()


def test_ray_starts_with_tokens_and_a_dashboard_on_loopback_everywhere(cluster: dict[str, Any]) -> None:
    for kind in ("head", "worker"):
        start = cluster[f"{kind}_start_ray_commands"][-1]
        before, started, _ = start.partition("ray start")
        assert started
        assert re.search(r"\bexport RAY_AUTH_MODE=token\b", before)
    head = cluster["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in head
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"  # where Ray looks for it, and makes it


def test_every_flag_is_one_that_ray_start_has(cluster: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {name for option in start.params for name in option.opts}
    for kind in ("head", "worker"):
        flags = re.findall(r"(--[a-z-]+)=?", cluster[f"{kind}_start_ray_commands"][-1])
        assert set(flags) <= known


def test_the_token_lies_where_ray_looks_for_it() -> None:
    from ray._private.authentication import authentication_token_setup as setup

    assert setup._get_default_token_path() == Path.home() / ".ray" / "auth_token"
    assert setup.AUTH_MODE_ENV_VAR == "RAY_AUTH_MODE"


def test_tpus_are_slices_of_one_host() -> None:
    from ray._private.accelerators.tpu import get_num_tpu_visible_chips_per_host, get_tpu_cores_per_chip

    types = read("gcp")["available_node_types"]
    pools = {name: kind for name, kind in types.items() if "machineType" not in kind["node_config"]}
    assert list(pools) == ["tpu"]
    slice_type = pools["tpu"]["node_config"]["acceleratorType"]
    chips = int(slice_type.split("-")[1]) / get_tpu_cores_per_chip(slice_type)
    assert chips == pools["tpu"]["resources"]["TPU"] <= get_num_tpu_visible_chips_per_host(slice_type)


def test_a_tpu_node_offers_what_ray_train_asks_of_it() -> None:
    from ray.util.tpu import get_tpu_worker_resources

    kind = read("gcp")["available_node_types"]["tpu"]
    hosts, asked = get_tpu_worker_resources(
        topology=kind["labels"]["ray.io/tpu-topology"],
        accelerator_type=kind["labels"]["ray.io/accelerator-type"],
        resources_per_worker={"CPU": 1.0},
    )
    assert hosts == 1
    assert all(kind["resources"].get(name, 0) >= amount for name, amount in asked.items())
    assert kind["resources"][f"TPU-{kind['node_config']['acceleratorType']}-head"] == 1


def test_images_hold_the_ray_and_the_python_of_the_constraints(cluster: dict[str, Any]) -> None:
    pinned = re.search(r"(?m)^ray==(.+)$", (ROOT / "constraints.txt").read_text())
    assert pinned
    images = re.findall(r"rayproject/ray:(\S+)", yaml.safe_dump(cluster))
    assert images
    assert set(images) == {f"{pinned[1]}-py311"}


def test_what_is_not_ours_to_know_is_a_placeholder(cluster: dict[str, Any]) -> None:
    text = yaml.safe_dump(cluster)
    assert "YOUR-" in text
    assert not re.search(r"(?i)AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|auth_token: [0-9a-f]{32}", text)

"""The cluster file, read by Ray's own schema code."""

from __future__ import annotations

import copy
from pathlib import Path

import yaml


def test_the_cluster_file_satisfies_rays_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    values = yaml.safe_load((Path(__file__).parents[1] / "cluster.yaml").read_text())
    full = prepare_config(copy.deepcopy(values))
    validate_config(full)
    assert set(full["available_node_types"]) == {"head", "gpu"}
    started = " ".join(values["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in started

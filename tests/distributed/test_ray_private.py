"""The private names of Ray that this project uses are there in the installed version; only one file imports them."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).parents[2]
POLICY = "ray.train.v2._internal.execution.scaling_policy"
ELASTIC = f"{POLICY}.elastic:ElasticScalingPolicy"
PURPOSES = {
    "ray._raylet:PlacementGroupID": "a trial that starts again gives back the machines of its earlier start (trial)",
    "ray.train._internal.utils:get_address_and_port": "workers on TPU hosts agree on the address of their coordinator (xla)",
    "ray.train.v2._internal.execution.callback:WorkerGroupCallback": "the driver hears that a group of workers failed or ends",
    "ray.train.v2._internal.execution.context:get_train_context": "a worker finds its group, to tell the driver that it lives",
    f"{POLICY}:NoopDecision": "an elastic group is left alone until it is saved (elastic)",
    f"{POLICY}:ResizeDecision": "an elastic group is saved before Ray resizes it (elastic)",
    f"{POLICY}:ScalingDecision": "the type of both",
    ELASTIC: "the number of workers of an elastic training divides its lanes (elastic)",
}
ATTRIBUTES = {
    f"{ELASTIC}._count_possible_workers": "overridden: the number of workers divides the lanes",
    f"{ELASTIC}._get_reserved_resources": "overridden: the cluster is looked at afresh",
    f"{ELASTIC}.GET_RESERVED_RESOURCES_INTERVAL_S": "how old Ray's own look may be",
    f"{ELASTIC}.make_decision_for_running_worker_group": "overridden: the group is saved before it is resized",
    "ray.train.v2._internal.execution.callback:WorkerGroupCallback.after_worker_group_poll_status": "overridden: who failed",
    "ray.train.v2._internal.execution.callback:WorkerGroupCallback.before_worker_group_shutdown": "overridden: the group ends",
    "ray.train.torch:TorchTrainer._initialize_and_run_controller": "overridden: gives the controller our policy",
}


@pytest.mark.parametrize(("name", "purpose"), [*PURPOSES.items(), *ATTRIBUTES.items()])
def test_the_installed_ray_has_the_private_name(name: str, purpose: str) -> None:
    module, _, path = name.partition(":")
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        pytest.fail(f"Ray {ray.__version__} has no {name}, which is needed so that: {purpose}; mend distributed/ray_private.py")


def test_only_one_file_imports_private_names_of_ray() -> None:
    private = {
        (path.relative_to(ROOT).as_posix(), f"{node.module}:{alias.name}")
        for folder in ("semantica", "jobs", "tune")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ray.")
        for alias in node.names
        if any(part.startswith("_") for part in [*(node.module or "").split("."), alias.name])
    }
    assert private == {("semantica/distributed/ray_private.py", name) for name in PURPOSES}

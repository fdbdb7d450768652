"""The number of workers of an elastic training: Ray's policy, restricted to numbers that the training can use.

A usable number divides the lanes of the data and can share the state as the configuration says. In: the free resources of the
cluster. Out: a group that shrinks when machines go and grows when machines come; the training is saved before the group grows.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import Result
from ray.train.torch import TorchTrainer

from semantica.distributed.ray_private import ElasticScalingPolicy, NoopDecision, ResizeDecision, ScalingDecision

_log = logging.getLogger(__name__)


def largest_world(possible: int, num_lanes: int, multiple_of: int = 1) -> int:
    """The largest multiple of `multiple_of` that divides num_lanes and is at most `possible`; 0 when there is none."""
    worlds = range(multiple_of, min(possible, num_lanes) + 1, multiple_of)
    return max((world for world in worlds if num_lanes % world == 0), default=0)


class LanesPolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray's elastic policy, with the numbers of workers of `largest_world`. A running group is saved before it is resized."""

    def __init__(self, scaling_config: Any, num_lanes: int, multiple_of: int, control: Any) -> None:
        super().__init__(scaling_config)
        self.num_lanes, self.multiple_of, self.control = num_lanes, multiple_of, control
        self._asked = float("-inf")  # time.monotonic() of the last request to save

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        return largest_world(super()._count_possible_workers(reserved_resources), self.num_lanes, self.multiple_of)

    def _get_reserved_resources(self) -> Any:
        """Ask for the resources anew. Ray's own answer is up to 20 s old, and a group would wait for a machine that has gone."""
        if time.monotonic() - self._latest_reserved_resources_query_time >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            look = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            try:
                ray.get(look, timeout=5)
            except RayError as error:
                _log.warning("train: Ray did not recompute the cluster's resources (%s)", error)
        return super()._get_reserved_resources()

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> ScalingDecision:
        """Ray ends the group to resize it. So the first decision to resize asks for a save, and the next one resizes the group."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if not isinstance(decision, ResizeDecision):
            return decision
        now = time.monotonic()
        if now - self._asked < 2 * self.scaling_config.elastic_resize_monitor_interval_s:
            return decision
        self._asked = now
        self.control.ask_to_save.remote()
        return NoopDecision()


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer with LanesPolicy. Ray has no public setting for a policy, so this overrides where Ray creates its own."""

    num_lanes = 1
    multiple_of = 1
    control: Any = None

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        parts["scaling_policy"] = LanesPolicy(self.scaling_config, self.num_lanes, self.multiple_of, self.control)
        return super()._initialize_and_run_controller(**parts)

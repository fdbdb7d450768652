"""How many workers an elastic training has: Ray's own policy, restricted to numbers that divide the lanes of the data and that can
share the state as the config says. In: what the cluster has free. Out: a group that shrinks when machines go and grows when they
come, saved before it grows.
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
    """Ray's elastic policy, with the numbers of workers of `largest_world`. Before a group that runs is resized it is saved."""

    def __init__(self, scaling_config: Any, num_lanes: int, multiple_of: int, control: Any) -> None:
        super().__init__(scaling_config)
        self.num_lanes, self.multiple_of, self.control = num_lanes, multiple_of, control
        self._asked = float("-inf")  # time.monotonic() of the last save that was asked for

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        return largest_world(super()._count_possible_workers(reserved_resources), self.num_lanes, self.multiple_of)

    def _get_reserved_resources(self) -> Any:
        """A fresh look. Ray's own is up to 20 s old, and a group that counts on a machine that has gone waits for it in vain."""
        if time.monotonic() - self._latest_reserved_resources_query_time >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            look = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            try:
                ray.get(look, timeout=5)
            except RayError as error:
                _log.warning("train: the cluster's resources were not looked at afresh (%s)", error)
        return super()._get_reserved_resources()

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> ScalingDecision:
        """Ray ends the group to resize it: it is asked to save at one look, and resized at the next if that still is right."""
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
    """A TorchTrainer whose policy is LanesPolicy. Ray has no public place for a policy: this is where its own is made."""

    num_lanes = 1
    multiple_of = 1
    control: Any = None

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        parts["scaling_policy"] = LanesPolicy(self.scaling_config, self.num_lanes, self.multiple_of, self.control)
        return super()._initialize_and_run_controller(**parts)

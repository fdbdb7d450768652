"""Everything that is used of Ray without being part of its public API. No other file imports a private name of Ray.

A new version of Ray may move or drop any of these. `tests/distributed/test_ray_private.py` names each one with what it is for, and
fails when one is gone; it also lists the private attributes that our subclasses override or read.
"""

from ray._raylet import PlacementGroupID
from ray.train._internal.utils import get_address_and_port
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

__all__ = [
    "ElasticScalingPolicy",
    "NoopDecision",
    "PlacementGroupID",
    "ResizeDecision",
    "ScalingDecision",
    "WorkerGroupCallback",
    "get_address_and_port",
    "get_train_context",
]

"""Where a command's Ray is: the cluster that RAY_ADDRESS names, or one of its own on this machine."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

from ray_profile.config import Cluster

MAX_IDLE_WORKERS = 16


def connected(cpus: int | None) -> bool:
    """Connect to the cluster that RAY_ADDRESS names, else start Ray here, with so many cores or all; False where this
    process is connected already."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_ADDRESS" in os.environ:
        ray.init(**quiet)
        return True
    # "local", or Ray would join whatever runs on this machine, which has cores of its own and refuses to be told. And
    # it ends workers that are idle for a second, so that every stage would wait for new ones to start.
    system = {"num_workers_soft_limit": MAX_IDLE_WORKERS}
    ray.init("local", num_cpus=cpus, _system_config=system, **quiet)
    return True


def most(settings: Cluster) -> tuple[float, float]:
    """(CPUs, GPUs) that a connected Ray has, or by `[cluster]` may have once its autoscaler has brought more."""
    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(have.get("CPU", 1.0), settings.cpus or 0.0), max(have.get("GPU", 0.0), settings.gpus or 0.0)


def can_grow() -> bool:
    """Whether a cluster's autoscaler may add nodes: Ray then lists node types beyond those that run."""
    from ray._private.state import state

    limits = state.get_cluster_config()
    return bool(limits is not None and limits.node_group_configs)

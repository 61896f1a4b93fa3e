"""`train.workers = [1, 2]` on a cluster of two nodes: one is lost, and the run goes on with what is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import traces
from ray._common.utils import reset_ray_address
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

#: A killed node is declared dead within two seconds instead of fifteen.
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}

#: Ray asks anew how many nodes are left after ten seconds of waiting for the lost one instead of sixty.
IMPATIENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}


def test_a_lost_node_leaves_one_worker_that_finishes_and_no_batch_is_lost_or_doubled(
    encoder: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    shop = tiny.write_shop(tmp_path_factory.mktemp("shop") / "data", encoder, customers=150)
    trace = tmp_path / "trace"
    config = tiny.config_of(
        shop, tmp_path / "root", *traces.FAST, "train.engine=deepspeed", "train.epochs=3", "train.workers=[1, 2]"
    )
    limits = {"num_cpus": 1, "object_store_memory": 150 << 20}
    head = {**limits, "_system_config": SOON, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    reset_ray_address()  # it told all programs of this machine to join it
    try:
        lost = cluster.add_node(**limits)
        run = traces.started(config, trace, RAY_ADDRESS=cluster.address, **IMPATIENT)
        traces.wait_for(run, lambda: all(_steps(trace, rank) >= 8 for rank in (0, 1)))
        before = set(trace.glob("*.jsonl"))
        cluster.remove_node(lost, allow_graceful=False)
        assert traces.ended(run, trace) == "finished"
    finally:
        cluster.shutdown()
    assert [path.name[:2] for path in set(trace.glob("*.jsonl")) - before] == ["0-"]  # one worker, of rank 0
    traces.assert_exactly_once(trace, traces.planned(config))


def _steps(trace: Path, rank: int) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in trace.glob(f"{rank}-*.jsonl"))

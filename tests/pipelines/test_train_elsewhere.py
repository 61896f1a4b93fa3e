"""Training on a root in S3: its checkpoints, its model, and the build that uses it."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import seaweedfs
import tiny
import traces
from equal import profiles_of

from ray_profile.pipelines.build import build
from ray_profile.store import models
from ray_profile.store.root import Root

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_job_killed_on_s3_goes_on_with_fewer_workers_and_build_uses_its_model(
    s3: seaweedfs.S3Server,
    encoder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shop = tiny.write_shop(tmp_path_factory.mktemp("shop") / "data", encoder, customers=150)
    root, trace = Root.bare(s3.fresh()), tmp_path / "trace"
    config = tiny.config_of(shop, root.address, *traces.FAST, "build.cpus=2")
    first = traces.started(config, trace)
    traces.wait_for(first, lambda: _checkpoints(root))
    traces.kill(first)
    assert models.versions(root, "encoder") == []
    made = {path.name for path in trace.glob("*.jsonl")}
    assert len(made) == 2

    fewer = tiny.config_of(shop, root.address, *traces.FAST, "build.cpus=2", "train.workers=1")
    second = traces.started(fewer, trace)
    traces.while_running(second, lambda: _assert_whole(root))
    assert traces.ended(second, trace) == "finished"
    (later,) = [path for path in trace.glob("*.jsonl") if path.name not in made]
    assert json.loads(later.read_text(encoding="utf-8").splitlines()[0])["step"] > 1
    traces.assert_exactly_once(trace, traces.planned(config))
    _assert_whole(root)
    assert not [entry.path for entry in root.list("training", "runs") if entry.size]

    using = tiny.config_of(shop, root.address, 'encoder.model="root:encoder"')
    build(using, local=True, clock=tiny.CLOCK)
    tags = profiles_of(root.address).explode("tags").select(pl.col("tags").struct.field("source"))
    assert "model" in tags.to_series().to_list()


def _checkpoints(root: Root) -> bool:
    """Whether a checkpoint of the run has been kept for good."""
    return any(entry.path.endswith("checkpoint_manager_snapshot.json") for entry in root.list("training", "runs"))


def _assert_whole(root: Root) -> None:
    """Every version that is listed has all the files that its manifest names."""
    for digest in models.versions(root, "encoder"):
        files = root.read_json("models", "encoder", digest, "manifest.json")["files"]
        there = {entry.path for entry in root.list("models", "encoder", digest)}
        assert {f"models/encoder/{digest}/{name}" for name in files} <= there

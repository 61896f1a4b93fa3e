"""`[cluster]` says how far a cluster grows: work is split for all of it, and what it can never satisfy is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from ray_profile.errors import ConfigError
from ray_profile.pipelines.build import build
from ray_profile.pipelines.cluster import most
from ray_profile.pipelines.engine import no_progress
from ray_profile.pipelines.rays import RayEngine
from ray_profile.pipelines.train import room
from ray_profile.sources.simulate import Shop

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]  # of two cores and no GPU


def test_work_is_split_for_the_cluster_that_there_will_be(shop: Shop, tmp_path: Path) -> None:
    grown = tiny.config_of(shop, tmp_path / "root", "state.buckets=256", "cluster.cpus=64", "cluster.gpus=4")
    assert most(grown.cluster) == (64, 4)
    engine = RayEngine(grown, no_progress)
    assert engine._partitions == 128
    assert (engine._encoders, engine._gpus_per_encoder, engine._device) == (4, 1, "cuda")
    here = RayEngine(tiny.config_of(shop, tmp_path / "root", "state.buckets=256"), no_progress)
    assert (here._partitions, here._encoders, here._device) == (4, 1, "cpu")
    assert room(grown.train, grown.cluster)[:3] == (1, 1, "cuda")


def test_more_gpus_than_the_cluster_ever_has_are_refused_before_a_row_is_read(shop: Shop, tmp_path: Path) -> None:
    sets = ["cluster.gpus=4", "build.encoders=5", "build.gpus_per_encoder=1"]
    with pytest.raises(ConfigError, match=r"asks for 5 GPUs, and the cluster may grow to 4 \(cluster\.gpus\)"):
        build(tiny.config_of(shop, tmp_path / "root", *sets), clock=tiny.CLOCK)
    assert not (tmp_path / "root" / "profiles").exists()
    training = tiny.config_of(shop, tmp_path / "root", "cluster.gpus=4", "train.workers=5", "train.gpus_per_worker=1")
    with pytest.raises(ConfigError, match=r"train\.workers asks for 5 workers with 1 GPU each, .* lower train.workers"):
        room(training.train, training.cluster)

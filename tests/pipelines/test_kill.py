"""Kill a build with SIGKILL anywhere, run it again: the tables equal those of an undisturbed run."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import seaweedfs
import tiny
from equal import assert_equal_roots, profiles_of

from ray_profile.pipelines.build import build
from ray_profile.sources.simulate import Shop
from ray_profile.store.root import Root
from ray_profile.store.tables import Table

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("killed.py")
STEPS = (
    "open.before", "open.after", "plan.before", "plan.after", "items.before", "items.after", "write.before",
    "write.after", "commit.before", "commit.after", "fuse.before", "fuse.after", "orphans.before", "orphans.after",
)  # fmt: skip
FILES = 9  # the catalogue, four buckets of states, four of profiles


def start(shop: Shop, root: object, when: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(shop.config), str(root), when, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed_at(shop: Shop, root: object, when: str, *more: str) -> None:
    process = start(shop, root, when, *more)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors


def assert_heals(shop: Shop, root: object, built: Path) -> None:
    """The same command, run again, gives the undisturbed tables, and a third run finds nothing to do."""
    config = tiny.config_of(shop, str(root))
    build(config, local=True, clock=tiny.CLOCK)
    assert_equal_roots(root, built, tiny.WIDTH)
    again = build(config, local=True, clock=tiny.CLOCK)
    assert (again.waves, again.profiles_written) == (0, 0)


def files_in_no_version(address: object) -> list[str]:
    """Data files under the root that its tables do not name."""
    root = Root.existing(str(address))
    lost = []
    for name in ("states", "profiles", "items"):
        handle = Table(root, name, partitioned=name != "items").open()
        assert handle is not None
        named = {f"{name}/{file.path}" for file in handle.files()} | {f"{name}/{path}" for path in handle.tombstones()}
        lost += [
            e.path
            for e in root.list(name)
            if e.path.endswith(".parquet") and "_delta_log" not in e.path and e.path not in named
        ]
    return lost


def test_the_steps_are_those_that_are_tested(shop: Shop, tmp_path: Path) -> None:
    process = start(shop, tmp_path / "root", "-1")
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert tuple(out.split()) == STEPS


@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_killed_at_a_step_it_heals(shop: Shop, built: Path, tmp_path: Path, step: int) -> None:
    root = tmp_path / "root"
    killed_at(shop, root, str(step))
    if STEPS[step] == "commit.after":
        handle = Table(Root.existing(str(root)), "profiles").open()
        assert handle is None or not handle.files(), "the profiles are fused only after the states are committed"
    assert_heals(shop, root, built)


@pytest.mark.parametrize("file", [1, 3, 6, FILES])
def test_killed_between_two_files_it_heals_and_leaves_no_orphan_behind(
    shop: Shop, built: Path, tmp_path: Path, file: int
) -> None:
    root = tmp_path / "root"
    killed_at(shop, root, f"write{file}")
    assert_heals(shop, root, built)
    assert files_in_no_version(root) == []


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_time_it_heals(shop: Shop, built: Path, tmp_path: Path, seed: int) -> None:
    root = tmp_path / "root"
    process = start(shop, root, "never")
    try:
        process.wait(timeout=random.Random(seed).uniform(1.0, 9.0))
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    assert_heals(shop, root, built)


@pytest.mark.parametrize("step", ["plan.after", "write.after", "commit.before", "commit.after", "fuse.after"])
def test_killed_on_s3_it_heals(s3: seaweedfs.S3Server, shop: Shop, built: Path, step: str) -> None:
    root = s3.fresh()
    killed_at(shop, root, str(STEPS.index(step)))
    assert_heals(shop, root, built)


@pytest.mark.ray
def test_the_driver_killed_through_ray_it_heals(shop: Shop, built: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    killed_at(shop, root, str(STEPS.index("commit.before")), "ray")
    assert_heals(shop, root, built)


def test_readers_see_whole_versions_only(shop: Shop, tmp_path: Path) -> None:
    """A reader that opened the profiles before a build reads the old version through to the end."""
    root = tmp_path / "root"
    config = tiny.config_of(shop, root)
    build(config, local=True, clock=tiny.CLOCK)
    before = profiles_of(root)
    handle = Table(Root.existing(str(root)), "profiles").open()
    assert handle is not None
    old = handle.version
    build(config, local=True, refresh=True, clock=tiny.CLOCK)
    then = pl.read_delta(str(root / "profiles"), version=old).sort("user_id")
    assert then.height == before.height
    assert then["user_id"].equals(before["user_id"])

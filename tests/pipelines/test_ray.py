"""Through Ray and as a plain loop the same tables come out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import tiny
from equal import assert_equal_roots

from ray_profile.config import parse
from ray_profile.errors import ConfigError, EncoderError, QuarantineLimitError
from ray_profile.pipelines import buckets, rays, shuffle
from ray_profile.pipelines.build import build
from ray_profile.pipelines.compact import compact
from ray_profile.sources.simulate import Shop

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


def test_an_error_in_the_plan_reaches_the_caller_as_itself(shop: Shop, tmp_path: Path) -> None:
    config = tiny.config_of(shop, tmp_path / "root", "sources.events.max_quarantine=0")
    with pytest.raises(QuarantineLimitError, match="max_quarantine"):
        build(config, clock=tiny.CLOCK)


def test_an_error_of_ours_in_a_worker_reaches_the_caller_as_itself(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_KEY", "here, and not where the workers were started before")
    config = tiny.config_of(shop, tmp_path / "root").model_dump()
    config["privacy"] = {"key_env": "SHOP_KEY"}
    with pytest.raises(ConfigError, match="SHOP_KEY"):
        build(parse(config), clock=tiny.CLOCK)


def test_an_encoder_that_no_worker_can_load_reaches_the_caller_as_itself(
    shop: Shop, encoder: Path, tmp_path: Path
) -> None:
    """Whether the first to need it encodes titles or reviews."""
    broken = shutil.copytree(encoder, tmp_path / "encoder")
    (broken / "model.safetensors").write_bytes(b"cut off")
    (tmp_path / "reviews.csv").write_text("u,i,t,x\na,x,2024-01-01,a warm tone\n")
    columns = {"user_id": "u", "item_id": "i", "ts": "t", "text": "x"}
    source = {"format": "columns", "kind": "review", "paths": [f"{tmp_path}/reviews.csv"], "columns": columns}
    config = tiny.config_of(shop, tmp_path / "root", f"encoder.model={broken}").model_dump()
    for sources in (config["sources"], {"s": source}):
        with pytest.raises(EncoderError, match="cannot be loaded"):
            build(parse({**config, "taxonomy": {}, "sources": sources}), clock=tiny.CLOCK)


def test_workers_that_die_at_every_stage_change_nothing(
    shop: Shop, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that reads, folds, encodes, shuffles, writes and fuses is killed once each, in the midst of its task."""

    def dies_once(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        mark = tmp_path / name

        def dying(*arguments: Any, **named: Any) -> Any:
            done = work(*arguments, **named)
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return dying

    class DyingActor(rays._EncodeActor):
        __call__ = dies_once("encode", rays._EncodeActor.__call__)

    tasks = {"_tokenise": rays, "_fold": rays, "_split": shuffle, "_combine": shuffle, "_write": shuffle}
    for name, module in {**tasks, "fuse_buckets": buckets}.items():
        monkeypatch.setattr(module, name, dies_once(name, getattr(module, name)))
    monkeypatch.setattr(shuffle, "SPLIT_BYTES", 1)
    monkeypatch.setattr(shuffle, "FAN_IN", 2)
    monkeypatch.setattr(rays, "_EncodeActor", DyingActor)
    told: dict[str, tuple[float, float, int]] = {}
    config = tiny.config_of(shop, tmp_path / "root")
    done = build(config, clock=tiny.CLOCK, progress=lambda stage, *rest: told.update({stage: rest}))
    assert {path.name for path in tmp_path.iterdir()} == {*tasks, "fuse_buckets", "encode", "root"}
    assert done.report.rows_read == shop.review_rows + shop.event_rows
    assert told["fold"][0] == told["fold"][1] > 0
    assert told["fold"][2] == done.report.rows_read
    assert told["fuse"][2] == done.profiles_written == done.users
    assert_equal_roots(tmp_path / "root", built, tiny.WIDTH)


def test_a_job_joins_the_cluster_that_ray_address_names(shop: Shop, built: Path, tmp_path: Path) -> None:
    """And compaction through Ray changes no profile."""
    script = Path(__file__).parents[2] / "jobs" / "build_profiles.py"
    command = [sys.executable, str(script), "--config", str(shop.config), "--json"]
    for override in (f"root={tmp_path / 'root'}", "encoder.dtype=float32", "build.cpus=1"):
        command += ["--set", override]
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ray.is_initialized()
    assert ray.get(ray.remote(lambda: "still here").remote()) == "still here"
    config = tiny.config_of(shop, tmp_path / "root")
    assert compact(config, max_files=0, clock=tiny.CLOCK).files_after > 0
    assert_equal_roots(tmp_path / "root", built, tiny.WIDTH)


@pytest.mark.slow
def test_a_mistake_that_a_worker_finds_is_one_line(tmp_path: Path) -> None:
    """The same line as without Ray: no traceback, and none of Ray Data's advice."""
    (tmp_path / "log.csv").write_text("u,i,t\na,x,2024-01-01\n")
    columns = '{ user_id = "u", item_id = "i", ts = "when" }'
    source = f'format = "columns"\nkind = "purchase"\npaths = ["log.csv"]\ncolumns = {columns}\n'
    (tmp_path / "c.toml").write_text(f'root = "profiles"\n[build]\ncpus = 1\n[sources.s]\n{source}')
    command = [sys.executable, "-m", "ray_profile", "build", "--config", str(tmp_path / "c.toml")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if not line.startswith("fold: ")]
    assert said == ["ray-profile: log.csv has no column 'when'; it has u, i, t; map it under [sources.s.columns]"]


@pytest.mark.slow
def test_one_cpu_is_enough(shop: Shop, built: Path, tmp_path: Path) -> None:
    """Encoders and the tasks that feed them must not wait for each other's CPU. Nor is a cluster joined that happens to
    run on the machine: RAY_ADDRESS names none."""
    command = [sys.executable, "-m", "ray_profile", "build", "--config", str(shop.config)]
    for override in (f"root={tmp_path / 'root'}", "encoder.dtype=float32", "build.cpus=1"):
        command += ["--set", override]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory(prefix="r-") as place:  # a short path, for sockets lie below it
        named = Path(place) / "ray" / "ray_current_cluster"  # what `ray start` leaves
        named.parent.mkdir()
        named.write_text(ray.get_runtime_context().gcs_address)
        environment["RAY_TMPDIR"] = place
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_equal_roots(tmp_path / "root", built, tiny.WIDTH)

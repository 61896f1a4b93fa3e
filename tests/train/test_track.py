"""Curves reach the trackers whole, also when the run that told them was interrupted."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_profile.errors import ConfigError
from ray_profile.store.root import Root
from ray_profile.train import track
from ray_profile.train_config import Track

FOLDER = ("training", "tensorboard", "run")
NOTHING = Track(tensorboard=False)
FIRST = [{"step": 20.0, "loss": 0.9}, {"step": 40.0, "loss": 0.7}, {"step": 40.0, "score": 0.5}]
LATER = [{"step": 60.0, "loss": 0.4}, {"step": 60.0, "score": 0.6}]


def told(what: Track, root: Root) -> None:
    """A run that is killed after its first points, and goes on: it tells all of them again, and the later ones."""
    first = multiprocessing.get_context("spawn").Process(target=_killed, args=(what, root))
    first.start()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    with track.tracked(what, root, FOLDER, "encoder-1") as tell:
        tell([*FIRST, *LATER])
        tell([*FIRST, *LATER])


def _killed(what: Track, root: Root) -> None:
    with track.tracked(what, root, FOLDER, "encoder-1") as tell:
        tell(FIRST)
        os.kill(os.getpid(), signal.SIGKILL)


def test_tensorboard_s_file_lies_under_the_root_and_holds_every_point_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = Root.bare(str(tmp_path / "root"))
    told(Track(), root)
    assert len(root.list(*FOLDER)) == 1
    events = EventAccumulator(root.path(*FOLDER))
    events.Reload()
    curves = {name: [(each.step, round(each.value, 3)) for each in events.Scalars(name)] for name in ("loss", "score")}
    assert curves == {"loss": [(20, 0.9), (40, 0.7), (60, 0.4)], "score": [(40, 0.5), (60, 0.6)]}


def test_mlflow_has_one_run_with_every_point_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed; `pip install mlflow`")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    told(Track(tensorboard=False, mlflow=True), Root.bare(str(tmp_path / "root")))
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    assert (run.info.run_name, run.info.status) == ("encoder-1", "FINISHED")
    losses = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "loss")]
    assert losses == [(20, 0.9), (40, 0.7), (60, 0.4)]
    assert run.data.metrics["score"] == 0.6


def test_wandb_has_every_point_of_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed; `pip install wandb`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with track.tracked(Track(tensorboard=False, wandb=True), Root.bare(str(tmp_path)), FOLDER, "encoder-1") as tell:
        tell(FIRST)
        tell([*FIRST, *LATER])
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-encoder-1.wandb")
    assert _history(kept) == {20: {"loss": 0.9}, 40: {"loss": 0.7, "score": 0.5}, 60: {"loss": 0.4, "score": 0.6}}


def _history(kept: Path) -> dict[int, dict[str, float]]:
    """What wandb's own file of an offline run holds, by step."""
    from wandb.proto import wandb_internal_pb2

    found: dict[int, dict[str, float]] = {}
    for body in _records(kept.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(body)
        if record.WhichOneof("record_type") == "history":
            items = {each.key or "/".join(each.nested_key): each.value_json for each in record.history.item}
            found[int(items["_step"])] = {name: json.loads(items[name]) for name in ("loss", "score") if name in items}
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log (blocks of 32 KiB) behind wandb's own 7 bytes."""
    at, body, block = 7, b"", 32_768
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)  # kind: whole, first, middle, last
        body = (body if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        if kind in (1, 4):
            yield body
        at += 7 + length


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", r"'ray_profile\[train\]'"), ("wandb", "wandb"), ("mlflow", "mlflow")],
)
def test_a_tracker_that_is_not_installed_is_named_with_what_to_install(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(track, "find_spec", lambda module: None if module == name else found(module))
    wanted: dict[str, Any] = {"tensorboard": False, name: True}
    with pytest.raises(ConfigError, match=rf"train\.track\.{name} = true, .* not installed; `pip install {package}`"):
        track.insist(Track(**wanted))
    track.insist(NOTHING)

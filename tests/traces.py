"""What each step of a training run was trained on, as `train(trace=...)` wrote it; and runs that can be killed.

python traces.py train CONFIG TRACE    train by the JSON of a configuration; prints how it ended
python traces.py tune CONFIG TRACE     search by it; prints the trials as JSON
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import seaweedfs

from ray_profile.config import Config, parse
from ray_profile.pipelines import examples, trainer
from ray_profile.pipelines.run import facts_of
from ray_profile.pipelines.train import train
from ray_profile.pipelines.tune import tune_encoder
from ray_profile.store.root import Root

#: Settings that make a training run of a tiny shop as short as it can be.
FAST = (
    "train.tokens_per_batch=512",
    "train.max_length=64",
    "train.learning_rate=0.001",
    "train.epochs=2",
    "train.evaluations_per_epoch=1",
    "train.dtype=float32",
    "train.checkpoint_steps=5",
    "train.dropout=0.0",
)


def traced(folder: Path) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """(epoch, batch number) -> every time it was trained on, by step."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            said = json.loads(line)
            if said["ids"]:
                said["pid"] = int(path.stem.split("-")[1])
                found.setdefault((said["epoch"], said["number"]), []).append(said)
    return found


def lines(folder: Path) -> int:
    """Batches that all workers have trained on so far."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("*.jsonl"))


def corpus_of(config: Config) -> examples.Corpus:
    """The one training set of a root."""
    root = Root.open(config.root, facts_of(config))
    (manifest,) = [entry for entry in root.list("training") if entry.path.endswith("/manifest.json")]
    return examples.opened(root, manifest.path.split("/")[1])


def planned(config: Config) -> dict[int, int]:
    """Batches by epoch, as the checkpoints' plan has them; counted in this process."""
    corpus = corpus_of(config)
    drawing, by = trainer.drawing_of(corpus, config.train)
    shared = (corpus, drawing, by, config.train.epochs)
    counts = [trainer._counted(shared, at) for at in range(len(corpus.of("train")))]
    return {epoch: sum(of_shard) for epoch, of_shard in enumerate(zip(*counts, strict=True))}


def assert_exactly_once(trace: Path, wanted: dict[int, int]) -> None:
    """Every batch counts once. A step that two attempts made counts in the later one: the earlier was rolled back with
    the weights when the later began at an older checkpoint."""
    steps: dict[int, list[tuple[float, int, tuple[int, int]]]] = {}
    for batch, times in traced(trace).items():
        for said in times:
            steps.setdefault(said["step"], []).append((said["at"], said["pid"], batch))
    first_at: dict[int, float] = {}
    for made in steps.values():
        for at, pid, _ in made:
            first_at[pid] = min(first_at.get(pid, at), at)
    restart = max(first_at.values()) - 1.0  # workers of one attempt begin together, a restart takes seconds
    first_step = min(step for step, made in steps.items() if any(at >= restart for at, _, _ in made))
    counted = Counter(
        batch for step, made in steps.items() for at, _, batch in made if (at >= restart) == (step >= first_step)
    )
    assert set(counted.values()) == {1}
    assert Counter(epoch for epoch, _ in counted) == wanted


def started(config: Config, trace: Path, command: str = "train", **environment: str) -> subprocess.Popen[str]:
    """A training run or a search in a process of its own, with a Ray of its own unless RAY_ADDRESS names one."""
    trace.mkdir(exist_ok=True)
    with (trace / "stderr.log").open("ab") as complaints:
        return subprocess.Popen(
            [sys.executable, __file__, command, config.model_dump_json(exclude_unset=True), str(trace)],
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            start_new_session=True,
            preexec_fn=seaweedfs.die_with_parent,
            env={**os.environ, **environment},
        )


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Return when `condition()` holds; fail where the process ends first."""
    pause = threading.Event()
    while not condition():
        assert process.poll() is None, "the run ended before it could be disturbed"
        pause.wait(0.1)


def while_running(process: subprocess.Popen[str], act: Callable[[], None]) -> None:
    """Do something again and again until the process ends."""
    pause = threading.Event()
    while process.poll() is None:
        act()
        pause.wait(0.5)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the process and to all that it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def ended(process: subprocess.Popen[str], trace: Path) -> str:
    """The last line that a started run printed; fails with what it complained of."""
    said, _ = process.communicate()
    assert process.returncode == 0, (trace / "stderr.log").read_text(encoding="utf-8")[-3000:]
    return said.splitlines()[-1]


def main() -> None:
    command, config, trace = sys.argv[1], parse(json.loads(sys.argv[2])), sys.argv[3]
    if command == "tune":
        print(json.dumps(tune_encoder(config).trials.to_dicts()))
    else:
        print(train(config, trace=trace).ended)


if __name__ == "__main__":
    main()

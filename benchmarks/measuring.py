"""What every benchmark shares: whose machine it was, work and peers in turn, results as JSON, floors that guard ratios.

A benchmark is one script: it runs ours and its peers in turn in one process or one after the other, prints a table,
writes `results/<name>_<cpu>_<date>.json` and fails where a ratio lies beyond its floor in floors.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
POLL_SECONDS = 0.02


def arguments(what: str) -> argparse.ArgumentParser:
    """The options that every benchmark has: --full (else the short form), --data, --out."""
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the whole work; without it the short form of `make bench`")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="folder of real data")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser


def machine(*packages: str) -> dict[str, Any]:
    """The machine, and the versions of the packages that the work rests on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "instructions": sorted(flags & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"}),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def in_turn(works: Mapping[str, Callable[[], Any]], repeats: int = 5) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Run each work `repeats` times, one after the other in every round, so that a slow moment hits all alike.

    Returns the wall seconds of every run, and what each work gave last.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    gave: dict[str, Any] = {}
    for _ in range(repeats):
        for name, work in works.items():
            began = time.perf_counter()
            gave[name] = work()
            seconds[name].append(time.perf_counter() - began)
    return seconds, gave


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and spread of some runs."""
    return {
        "median_seconds": round(statistics.median(seconds), 4),
        "min_seconds": round(min(seconds), 4),
        "max_seconds": round(max(seconds), 4),
        "runs": len(seconds),
    }


class Memory:
    """Peak resident bytes of this process and its children while watched; shared pages count once a process."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.start_bytes = 0


@contextmanager
def peak_memory(pid: int | None = None) -> Iterator[Memory]:
    """Watch the proportional set size of a process tree: pages shared by n processes count 1/n in each of them."""
    root, memory, over = pid or os.getpid(), Memory(), threading.Event()
    memory.start_bytes = memory.peak_bytes = _tree_bytes(root)

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            memory.peak_bytes = max(memory.peak_bytes, _tree_bytes(root))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        over.set()
        thread.join()
        memory.peak_bytes = max(memory.peak_bytes, _tree_bytes(root))


def _tree_bytes(root: int) -> int:
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            children = [p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/children")]
        except OSError:
            continue  # it has ended
        total += next((int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
        todo += [int(child) for each in children for child in each.split()]
    return total


def finish(name: str, body: Mapping[str, Any], ratios: Mapping[str, float], out: Path, full: bool) -> None:
    """Write the results with their `ratios`, and exit 1 where one of them lies beyond its floor.

    `body` says `what` was done, on which `machine`, and every figure that the ratios come from.
    """
    rounded = {key: round(value, 3) for key, value in ratios.items()}
    now = datetime.now(UTC)
    result = {"benchmark": name, "date": f"{now:%Y-%m-%d}", "form": "full" if full else "short", **body}
    result["ratios"] = rounded
    cpu = "".join(c if c.isalnum() else "-" for c in str(body["machine"]["cpu"]).lower()).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}_{cpu}_{now:%Y-%m-%d}{'' if full else '_short'}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beyond = beyond_floors(name, rounded, tomllib.loads((HERE / "floors.toml").read_text(encoding="utf-8")))
    if beyond:
        sys.exit("\n".join(beyond))


def beyond_floors(name: str, ratios: Mapping[str, float], floors: Mapping[str, Any]) -> list[str]:
    """One line for each ratio that floors.toml bounds and that lies beyond its bound, or was not measured."""
    lines = []
    for ratio, bound in floors.get(name, {}).items():
        value = ratios.get(ratio)
        if value is None:
            lines.append(f"{name}.{ratio}: floors.toml bounds it, but this run did not measure it")
        elif value < bound.get("at_least", value) or value > bound.get("at_most", value):
            said = " and ".join(f"{word.replace('_', ' ')} {limit}" for word, limit in bound.items())
            lines.append(f"{name}.{ratio} is {value}; floors.toml says {said}")
    return lines

"""Peak memory of a build: flat as the corpus grows at the same block size, and bounded where states outgrow it.

    python benchmarks/memory.py [--full] [--engines local ray]

*Growth*: events of 1x, 4x and 16x the rows and users, with buckets in proportion (a bucket's users are what one task
holds), all with one build.memory_gb, which bounds the partial states that a plain loop holds; through Ray the shuffle
takes its place. *Outgrown*: one corpus built with memory for all of its states, and for a fifth of them.

Every build is a process of its own, whose proportional set size (with its children's) is watched from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import corpus
import measuring
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

from ray_profile.config import parse
from ray_profile.pipelines import local, spill
from ray_profile.pipelines.build import build

GROWTH = (1, 4, 16)
ROWS_PER_FILE = 12_500
ROWS_PER_USER = 8
USERS_PER_BUCKET = 1_500
BASE_ROWS = {False: 50_000, True: 125_000}
MEMORY_BYTES = {False: 16 << 20, True: 48 << 20}  # of partial states; the smallest corpus has more
OUTGROWN_ROWS = {False: 200_000, True: 1_000_000}
CLOCK = datetime(2025, 7, 2, tzinfo=UTC)
PLENTY_BYTES = 1 << 40
OBJECT_STORE_BYTES = 256 << 20  # of Ray; by default a third of the machine's memory, which any corpus fills in time
OVER = 5  # times that the states exceed the allowed memory


def config_of(folder: Path, root: str, buckets: int, memory_bytes: int) -> dict[str, Any]:
    """A configuration that builds `folder`/files into `folder`/`root`."""
    source = {**corpus.EVENTS_SOURCE, "paths": [str(folder / "files" / "*.parquet")]}
    return {
        "root": str(folder / root),
        "sources": {"events": source},
        "state": {"buckets": buckets},
        "build": {"memory_gb": memory_bytes / 1e9},
    }


def watched(config: dict[str, Any], engine: str) -> dict[str, Any]:
    """Build in a process of its own; what it did, and its peak memory in MiB."""
    command = [sys.executable, __file__, "--child", json.dumps(config), "--engines", engine]
    store = {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(OBJECT_STORE_BYTES)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | store)
    with measuring.peak_memory(process.pid) as memory:
        said, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"the build failed with exit code {process.returncode}")
    return {**json.loads(said.splitlines()[-1]), "peak_mib": round(memory.peak_bytes / 2**20)}


def child(config: dict[str, Any], engine: str) -> None:
    """One build; prints a line of JSON."""
    held = 0

    class Counted(spill.Spill):
        """Knows how much was handed to it."""

        def add(self, states: pl.DataFrame) -> None:
            nonlocal held
            held += int(states.estimated_size())
            super().add(states)

    local.Spill = Counted  # type: ignore[misc]
    summary = build(parse(config), local=engine == "local", clock=CLOCK)
    said = {
        "rows": summary.report.rows_folded,
        "users": summary.users,
        "seconds": round(summary.seconds - summary.stages.get("start", 0.0), 2),
        "state_bytes": held,  # 0 through Ray, whose tasks lie in other processes
    }
    print(json.dumps(said))


def growth(engine: str, base_rows: int, memory_bytes: int) -> dict[str, Any]:
    """Builds of ever more files of the same size, each of which has more states than it may hold."""
    found: dict[str, Any] = {}
    for factor in GROWTH:
        rows = base_rows * factor
        users = rows // ROWS_PER_USER
        with tempfile.TemporaryDirectory(prefix="memory-") as name:
            folder, buckets = Path(name), max(1, users // USERS_PER_BUCKET)
            corpus.write_events(folder / "files", rows, users, rows // ROWS_PER_FILE)
            found[f"{factor}x"] = {
                "buckets": buckets,
                **watched(config_of(folder, "root", buckets, memory_bytes), engine),
            }
    return found


def outgrown(rows: int) -> dict[str, Any]:
    """The same corpus with memory for all of its states, and for a fifth of them."""
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        folder, users = Path(name), rows // ROWS_PER_USER
        corpus.write_events(folder / "files", rows, users, rows // ROWS_PER_FILE)
        buckets = max(1, users // USERS_PER_BUCKET)
        plenty = watched(config_of(folder, "plenty", buckets, PLENTY_BYTES), "local")
        allowed = plenty["state_bytes"] // OVER
        scarce = watched(config_of(folder, "scarce", buckets, allowed), "local")
        assert scarce["users"] == plenty["users"], "a user was lost on the way through the disk"
        return {"allowed_bytes": allowed, "plenty": plenty, "scarce": scarce}


def main() -> None:
    parser = measuring.arguments(__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=("local", "ray"), default=["local"])
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child, arguments.engines[0])
        return
    grown = {
        engine: growth(engine, BASE_ROWS[arguments.full], MEMORY_BYTES[arguments.full]) for engine in arguments.engines
    }
    spilled = outgrown(OUTGROWN_ROWS[arguments.full])
    ratios = {
        f"{engine}_peak_of_16x": each["16x"]["peak_mib"] / each["1x"]["peak_mib"] for engine, each in grown.items()
    }
    ratios["outgrown_time"] = spilled["scarce"]["seconds"] / spilled["plenty"]["seconds"]
    ratios["outgrown_peak"] = spilled["scarce"]["peak_mib"] / spilled["plenty"]["peak_mib"]
    _print(grown, spilled, ratios)
    body = {
        "what": "peak memory (proportional set size of the process tree) of builds of ever more events, and of states "
        f"{OVER} times the memory they may take; each build once",
        "machine": measuring.machine("polars", "pyarrow", "deltalake", "ray"),
        "growth": grown,
        "outgrown": spilled,
    }
    measuring.finish("memory", body, ratios, arguments.out, arguments.full)


def _print(grown: Mapping[str, Any], spilled: Mapping[str, Any], ratios: Mapping[str, float]) -> None:
    table = Table("", "rows", "users", "buckets", "states MiB", "seconds", "peak MiB", box=box.SIMPLE_HEAD)
    rows = [(f"{engine} {size}", one) for engine, each in grown.items() for size, one in each.items()]
    rows += [(f"states {name}", spilled[name]) for name in ("plenty", "scarce")]
    for name, one in rows:
        figures = (one["rows"], one["users"], one.get("buckets", ""), one["state_bytes"] >> 20, one["seconds"])
        table.add_row(name, *(f"{each:,}" if each != "" else "" for each in (*figures, one["peak_mib"])))
    Console().print(table)
    for name, value in ratios.items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()

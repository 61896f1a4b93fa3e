"""Time by stage of a build on real files: 10,261 reviews and 541,909 order lines, as a plain loop and through Ray.

    python benchmarks/build.py [--data ../shared/data] [--engines local ray] [--out benchmarks/results]

Every root is new and lies in a temporary folder; the encoder is the default. Checks that both engines give as many
rows and users; that their tables are equal is a test (tests/pipelines/test_ray.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ray_profile.config import Config, parse
from ray_profile.pipelines.build import Summary, build

ORDERS = {
    "user_id": "CustomerID",
    "item_id": "Description",
    "item_title": "Description",
    "ts": "InvoiceDate",
    "price": "UnitPrice",
    "quantity": "Quantity",
    "place": "Country",
}


def config_of(data: Path, root: str) -> Config:
    """amazon_musical and online_retail into one root."""
    orders = {
        "format": "columns",
        "kind": "purchase",
        "timezone": "Europe/London",
        "paths": [str(data / "online_retail" / "*.parquet")],
        "columns": ORDERS,
    }
    reviews = {"format": "amazon-2014", "paths": [str(data / "amazon_musical" / "*.parquet")]}
    return parse({"root": root, "sources": {"reviews": reviews, "orders": orders}})


def measured(done: Summary, again: Summary) -> dict[str, Any]:
    """One engine's row of the results."""
    report = done.report
    return {
        **done.to_json(),
        "stages_seconds": {name: round(seconds, 2) for name, seconds in done.stages.items()},
        "worker_seconds": {name: round(seconds, 2) for name, seconds in report.seconds.items()},
        "texts": report.texts,
        "tokens": report.tokens,
        "second_build_seconds": round(again.seconds, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--engines", nargs="+", choices=("local", "ray"), default=["local", "ray"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for engine in arguments.engines:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            config = config_of(arguments.data, f"{folder}/root")
            done = build(config, local=engine == "local")
            results[engine] = measured(done, build(config, local=engine == "local"))
    rows = {(each["rows_read"], each["rows_folded"], each["users"]) for each in results.values()}
    assert len(rows) == 1, f"the engines disagree: {rows}"
    machine = {"cores": os.cpu_count(), "cpu": _cpu(), "gpu": None, "python": platform.python_version()}
    now = datetime.now(UTC)
    body = {"what": "build of amazon_musical + online_retail", "date": f"{now:%Y-%m-%d}", "machine": machine, **results}
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = f"build_{_cpu().lower().replace(' ', '-')}_{now:%Y-%m-%d}.json"
    (arguments.out / name).write_text(json.dumps(body, indent=2) + "\n")
    _print(results)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _print(results: dict[str, Any]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for engine in results:
        table.add_column(engine, justify="right")
    for key in ("rows_read", "users", "tokens", "seconds", "second_build_seconds"):
        table.add_row(key, *(f"{each[key]:,}" for each in results.values()))
    for group in ("stages_seconds", "worker_seconds"):
        for stage in sorted({stage for each in results.values() for stage in each[group]}):
            table.add_row(f"{group}: {stage}", *(f"{each[group].get(stage, 0):,.1f}" for each in results.values()))
    Console().print(table)


if __name__ == "__main__":
    main()

"""What going through Ray costs: `build` through Ray against the plain loop of `--local`, on the same files.

    python benchmarks/overhead.py [--full]

Reviews (Amazon Musical Instruments) and order lines (UCI Online Retail) into one new root a run, on the default
encoder, in two sizes of which the greater is four times the smaller. Every run is a process of its own, as a person
starts it. What Ray itself takes to start (`ray.init`) is reported apart and left out of the ratio; everything after it
is in it, also the start of worker processes and the encoder's load in them. From the two sizes follow what Ray costs a
run (the fixed seconds) and what it costs a row (`marginal`: the extra rows' seconds through Ray over those without).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import measuring
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

ORDERS = {
    "user_id": "CustomerID",
    "item_id": "Description",
    "item_title": "Description",
    "ts": "InvoiceDate",
    "price": "UnitPrice",
    "quantity": "Quantity",
    "place": "Country",
}
SIZES = {False: {"small": 8, "large": 2}, True: {"small": 4, "large": 1}}  # one in so many rows
REPEATS = {False: 3, True: 5}

#: One build in a process of its own; the last line is what it measured.
CHILD = """
import json, sys, time
from ray_profile.config import parse
from ray_profile.pipelines.build import build
config = parse(json.loads(sys.argv[1]))
began = time.perf_counter()
done = build(config, local=sys.argv[2] == "local")
seconds = time.perf_counter() - began
report = done.report
print(json.dumps({**done.to_json(), "seconds": seconds, "stages": done.stages, "workers": report.seconds,
                  "texts": report.texts, "tokens": report.tokens}))
"""


def settings(files: dict[str, list[str]], root: str) -> dict[str, Any]:
    """The build's configuration."""
    orders = {"format": "columns", "kind": "purchase", "timezone": "Europe/London", "columns": ORDERS}
    sources = {"reviews": {"format": "amazon-2014"}, "orders": orders}
    return {"root": root, "sources": {name: {**sources[name], "paths": files[name]} for name in sources}}


def corpus(data: Path, folder: Path, one_in: int) -> dict[str, list[str]]:
    """The files that both builds read: the first part of each set, in row groups that let two workers begin at once."""
    files: dict[str, list[str]] = {}
    for name, where in {"reviews": "amazon_musical", "orders": "online_retail"}.items():
        rows = pl.concat([pl.read_parquet(path) for path in sorted((data / where).glob("*.parquet"))])
        rows = rows.head(rows.height // one_in)
        files[name] = [str(folder / f"{name}-{one_in}.parquet")]
        rows.write_parquet(files[name][0], row_group_size=max(1, rows.height // 4))
    return files


def run(files: dict[str, list[str]], engine: str) -> dict[str, Any]:
    """One build into a new root."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        config = json.dumps(settings(files, f"{folder}/root"))
        command = [sys.executable, "-c", CHILD, config, engine]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure of some runs."""
    first = runs[0]
    stages = {name: statistics.median(each["stages"].get(name, 0.0) for each in runs) for name in first["stages"]}
    workers = {name: statistics.median(each["workers"].get(name, 0.0) for each in runs) for name in first["workers"]}
    beyond_start = [each["seconds"] - each["stages"].get("start", 0.0) for each in runs]
    return {
        "seconds": round(statistics.median(each["seconds"] for each in runs), 2),
        "seconds_beyond_start": round(statistics.median(beyond_start), 2),
        "spread_beyond_start": [round(min(beyond_start), 2), round(max(beyond_start), 2)],
        "stages": {name: round(value, 2) for name, value in stages.items()},
        "worker_seconds": {name: round(value, 2) for name, value in workers.items()},
        "runs": len(runs),
    }


def main() -> None:
    arguments = measuring.arguments(__doc__ or "").parse_args()
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        sizes = SIZES[arguments.full].items()
        files = {size: corpus(arguments.data, Path(folder), one_in) for size, one_in in sizes}
        for _ in range(REPEATS[arguments.full]):
            for size in files:
                for engine in ("local", "ray"):
                    runs[size, engine].append(run(files[size], engine))
    facts = {size: _agreed(runs[size, "local"] + runs[size, "ray"]) for size in files}
    results = {size: {engine: medians(runs[size, engine]) for engine in ("local", "ray")} for size in files}
    took = {key: _beyond_start(results[key[0]][key[1]]) for key in runs}
    extra = {engine: took["large", engine] - took["small", engine] for engine in ("local", "ray")}
    ratios = {
        "ray_over_local": took["large", "ray"] / took["large", "local"],
        "marginal": extra["ray"] / extra["local"],
    }
    fixed = {engine: round(took["small", engine] - extra[engine] / 3, 2) for engine in extra}
    body = {
        "what": "build through Ray against the plain loop, seconds beyond ray.init",
        "machine": measuring.machine("ray", "torch", "polars"),
        "corpora": facts,
        "fixed_seconds": fixed,
        "results": results,
    }
    show(results, ratios, fixed)
    measuring.finish("overhead", body, ratios, arguments.out, arguments.full)


def _beyond_start(result: dict[str, Any]) -> float:
    return float(result["seconds_beyond_start"])


def _agreed(runs: list[dict[str, Any]]) -> dict[str, int]:
    """What all these runs read and made; fails where they differ."""
    names = ("rows_read", "rows_folded", "users", "tokens")
    facts = {tuple(each[name] for name in names) for each in runs}
    assert len(facts) == 1, f"the builds disagree: {facts}"
    return dict(zip(names, facts.pop(), strict=True))


def show(results: dict[str, Any], ratios: dict[str, float], fixed: dict[str, float]) -> None:
    """A table for people."""
    said = ", ".join(f"{name.replace('_', ' ')} {ratio:.2f}" for name, ratio in ratios.items())
    table = Table(box=box.SIMPLE_HEAD, title=f"{said} (goal: at most 1.10)")
    columns = [(size, engine) for size in results for engine in results[size]]
    table.add_column("seconds, median")
    for size, engine in columns:
        table.add_column(f"{size} {engine}", justify="right")
    for key in ("seconds", "seconds_beyond_start"):
        table.add_row(key.replace("_", " "), *(f"{results[size][engine][key]:.2f}" for size, engine in columns))
    for group in ("stages", "worker_seconds"):
        for name in results["large"]["local"][group]:
            values = [f"{results[size][engine][group].get(name, 0.0):.2f}" for size, engine in columns]
            table.add_row(f"{'stage' if group == 'stages' else 'in workers'}: {name}", *values)
    Console().print(table)
    Console().print(f"fixed seconds of a run: {fixed['local']:.1f} without Ray, {fixed['ray']:.1f} through it")


if __name__ == "__main__":
    main()

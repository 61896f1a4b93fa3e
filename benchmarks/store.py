"""Profiles written whole, 5,000 of them replaced, 100 deleted and erased, single ones read: ours, Parquet and Lance.

    python benchmarks/store.py [--full] [--places local s3] [--repeats 5]

200,000 profiles with --full, else 20,000 (and a tenth of the replaced and deleted ones); a real profile each, 5.7 KB
with its vectors. S3 is a SeaweedFS server on the same machine. Reads are warm: the table is open, and each user is one
that was not read before.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import polars as pl
from profiles import WIDTH, make_profiles
from rich import box
from rich.console import Console
from rich.table import Table
from stores import STORES, Store

sys.path.insert(0, str(measuring.HERE.parent / "tests"))
import seaweedfs

WARMING = 20
SIZES = {False: (20_000, 500, 10, 60), True: (200_000, 5_000, 100, 200)}  # profiles, replaced, deleted, read
SHARE_NEW = 0.1  # of the replaced ones, users that were not there


def changed(profiles: pl.DataFrame, count: int, seed: int) -> pl.DataFrame:
    """`count` profiles with new vectors and numbers, a tenth of them of new users."""
    rng = np.random.default_rng(seed)
    some = profiles.sample(count, seed=seed)
    vectors = rng.standard_normal((count, WIDTH), dtype=np.float32)
    named = some["user_id"].to_list()
    fresh = int(count * SHARE_NEW)
    named[:fresh] = [f"{rng.bytes(32).hex()}" for _ in range(fresh)]
    vector = pl.Series("embedding", vectors, dtype=pl.Array(pl.Float32, WIDTH)).cast(pl.List(pl.Float32))
    return some.with_columns(pl.Series("user_id", named), vector, pl.col("rows") + 1)


def exercised(
    store: Store, profiles: pl.DataFrame, replaced: int, deleted: int, read: int, seed: int
) -> dict[str, float]:
    """Seconds of each piece of work, in order; the store must hold what it should after each."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], None]) -> None:
        began = time.perf_counter()
        work()
        seconds[name] = time.perf_counter() - began

    rows = changed(profiles, replaced, seed)
    timed("write", lambda: store.write(profiles))
    assert store.count() == profiles.height
    timed("upsert", lambda: store.upsert(rows))
    held = profiles.height + int(replaced * SHARE_NEW)
    assert store.count() == held
    here = store.read(rows["user_id"][-1])
    assert here["rows"].to_pylist() == [rows["rows"][-1]], "an upserted profile is not the new one"
    gone = profiles["user_id"].sample(deleted, seed=seed + 1).to_list()
    timed("delete", lambda: store.delete(gone))
    timed("erase", store.erase)
    assert store.count() == held - deleted
    assert store.read(gone[0]).num_rows == 0, "a deleted profile is still there"
    others = profiles.filter(~pl.col("user_id").is_in(gone))["user_id"]
    return seconds | reads(store, others.sample(WARMING + read, seed=seed + 2))


def reads(store: Store, users: pl.Series) -> dict[str, float]:
    """p50 and p99 of reading one user's whole profile."""
    took: list[float] = []
    for user in users:
        began = time.perf_counter()
        found = store.read(user)
        took.append(time.perf_counter() - began)
        assert found.num_rows == 1, f"{found.num_rows} profiles of one user"
    warm = took[WARMING:]
    return {"read_p50": float(np.quantile(warm, 0.5)), "read_p99": float(np.quantile(warm, 0.99))}


@contextmanager
def place(name: str, folder: Path) -> Iterator[Callable[[str], str]]:
    """A maker of fresh addresses: folders, or prefixes of a server that lives as long as the context."""
    if name == "local":
        yield lambda store: str(folder / f"{store}-{time.monotonic_ns()}")
        return
    with seaweedfs.running(folder) as server:
        before = dict(os.environ)
        os.environ.update(server.environment())
        try:
            yield server.fresh
        finally:
            os.environ.clear()
            os.environ.update(before)


def measured(name: str, profiles: pl.DataFrame, work: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """Medians of each store at a place."""
    runs: dict[str, list[dict[str, float]]] = {store: [] for store in STORES}
    for seed in range(repeats):
        for store, kind in STORES.items():  # a server and a folder each, so that the disk never holds more than one
            with tempfile.TemporaryDirectory(prefix="store-") as folder, place(name, Path(folder)) as fresh:
                runs[store].append(exercised(kind(fresh(store)), profiles, *work, seed))
    return {
        store: {
            part: {
                "median_seconds": round(statistics.median(run[part] for run in each), 5),
                "min_seconds": round(min(run[part] for run in each), 5),
                "max_seconds": round(max(run[part] for run in each), 5),
            }
            for part in each[0]
        }
        for store, each in runs.items()
    }


def ratios_of(places: Mapping[str, Any]) -> dict[str, float]:
    """Ours over each peer's time: below 1 ours is faster."""
    found = {}
    for name, stores in places.items():
        for peer in ("parquet", "lance"):
            for work, ours in stores["ours"].items():
                theirs = stores[peer][work]["median_seconds"]
                if theirs > 0.001:  # plain Parquet has nothing to erase
                    found[f"{name}_{work}_of_{peer}"] = ours["median_seconds"] / theirs
    return found


def main() -> None:
    parser = measuring.arguments(__doc__.splitlines()[0])
    parser.add_argument("--places", nargs="+", choices=("local", "s3"), default=["local", "s3"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    count, *work = SIZES[arguments.full]
    profiles = make_profiles(count, arguments.data)
    places = {name: measured(name, profiles, tuple(work), arguments.repeats) for name in arguments.places}
    _print(places)
    body = {
        "what": "{:,} profiles written, {:,} of them replaced, {} deleted, {} read".format(*SIZES[arguments.full]),
        "machine": measuring.machine("polars", "pyarrow", "deltalake", "pylance"),
        "repeats": arguments.repeats,
        "profile_bytes_in_memory": round(profiles.estimated_size() / count),
        "places": places,
    }
    name = "_".join(["store", *(arguments.places if len(arguments.places) == 1 else [])])
    measuring.finish(name, body, ratios_of(places), arguments.out, arguments.full)


def _print(places: Mapping[str, Any]) -> None:
    table = Table("", *(f"{name} {store}" for name in places for store in STORES), box=box.SIMPLE_HEAD)
    for work in ("write", "upsert", "delete", "erase", "read_p50", "read_p99"):
        cells = [places[name][store][work]["median_seconds"] for name in places for store in STORES]
        table.add_row(
            work, *(f"{each * 1000:.1f} ms" if work.startswith("read") else f"{each:.2f} s" for each in cells)
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()

"""Fold and fuse of generated events: ours against Polars, DuckDB and Ray Data's map_groups.

    python benchmarks/fold.py [--full] [--out benchmarks/results]

Five million events of a million users with --full, else a million of 200,000; and the same where one user makes 30 %.
Ours is what a build does with rows once they are read, in one process: fold blocks of 100,000 rows into states by user
and month, bring the states of a bucket together, merge them, sum up the corpus's statistics and fuse the profiles.
`behaviour` folds the behaviour facet only: what the peers compute, and besides it the evidence of every category and
brand, the items of the embedding and the mergeable state. `everything` adds the text facet and the embedding. The peers
compute the same features at once from all events, and keep nothing that the next day could be added to.

The features of a sample of users are compared first: integers, strings, times and their order exactly, floats to 1e-6.
Left out of it are the busiest users, for whom our bounded state gives estimates (more than 256 rows).
Memory is measured apart from time, each work in a process of its own, as the peak beyond what the events take.
"""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import fold_events
import numpy as np
import polars as pl
from fold_peers import FEATURES, duckdb_features, polars_features
from measuring import HERE, arguments, finish, in_turn, machine, peak_memory, summary
from rich import box
from rich.console import Console
from rich.table import Table

from ray_profile.config import Build
from ray_profile.pipelines.spill import Spill
from ray_profile.profile import behaviour, fuse_behaviour, statistics
from ray_profile.profile.facet import FoldContext, FuseContext
from ray_profile.profile.fold import fold, prepared, state_schema
from ray_profile.profile.fuse import beside, fuse, numbered
from ray_profile.profile.items import Items
from ray_profile.sources.blocks import BLOCK_ROWS
from ray_profile.sources.redact import bucket_of
from ray_profile.store.waves import GB
from ray_profile.threads import mapped

WIDTH = 384
HEAVY = 0.3
SAMPLE, SAMPLE_ROWS = 2_000, 256
USERS_PER_BUCKET = 50_000
REPEATS = 5
PEER_ENGINE = "in-memory"  # Polars' faster engine on these queries; the streaming one needs less memory

Profiles = Iterator[pl.DataFrame]


def ours(events: pl.DataFrame, items: Items, everything: bool) -> Profiles:
    """The profiles of one bucket after the other, as a build writes them."""
    context, schema = FoldContext(items, WIDTH), state_schema(WIDTH)
    buckets = max(events["user_id"].n_unique() // USERS_PER_BUCKET, 1)
    with Spill(schema, int(Build().memory_gb * GB)) as spill:
        states_of = fold if everything else _behaviour_states
        for states in mapped(lambda rows: states_of(rows, context), events.iter_slices(BLOCK_ROWS)):
            spill.add(states.with_columns(bucket_of(states["user_id"], buckets).alias("bucket")))
        merged = [states for _, states in spill.buckets()]
    corpus = statistics.combine(statistics.of_states(states) for states in merged)
    fusing = FuseContext(items, fold_events.AS_OF, corpus, 1, "none", WIDTH)
    profiles_of = fuse if everything else _behaviour_profiles
    yield from mapped(lambda states: profiles_of(states, fusing), (merged.pop() for _ in range(len(merged))))


def _behaviour_states(rows: pl.DataFrame, context: FoldContext) -> pl.DataFrame:
    keys, rows = prepared(rows, context)
    return state_schema(WIDTH).assemble(keys, behaviour.fold(rows, context))


def _behaviour_profiles(states: pl.DataFrame, context: FuseContext) -> pl.DataFrame:
    users, states = numbered(states, context)
    dtypes: dict[str, pl.DataType] = {"user_id": pl.String(), **fuse_behaviour.DTYPES}
    return beside(users, fuse_behaviour.fuse(states, context), dtypes)


def differences(mine: pl.DataFrame, theirs: pl.DataFrame) -> list[str]:
    """What differs between two frames of the same users and features, at most one line a user."""
    found = []
    for a, b in zip(mine.sort("user_id").to_dicts(), theirs.sort("user_id").to_dicts(), strict=True):
        found += [f"{a['user_id']}: {said}" for name in b if (said := _differs(a[name], b[name], name))][:1]
    return found


def _differs(a: Any, b: Any, where: str) -> str | None:
    if isinstance(a, dict) and isinstance(b, dict):
        return next((said for key in b if (said := _differs(a[key], b[key], f"{where}.{key}"))), None)
    if isinstance(a, list) or isinstance(b, list):
        a, b = a or [], b or []
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} entries"
        return next(
            (said for i, (x, y) in enumerate(zip(a, b, strict=True)) if (said := _differs(x, y, f"{where}[{i}]"))), None
        )
    if isinstance(a, float) and isinstance(b, float):
        return None if abs(a - b) <= 1e-6 * max(1.0, abs(a)) else f"{where}: {a} and {b}"
    if isinstance(a, dt.datetime) and isinstance(b, dt.datetime):
        return None if a.timestamp() == b.timestamp() else f"{where}: {a} and {b}"
    return None if a == b else f"{where}: {a!r} and {b!r}"


def compare(events: pl.DataFrame, items: Items) -> dict[str, int]:
    """How many sampled users were compared with each peer; stops where one differs.

    Users with so many rows that a map of theirs may be full are left out, also of the shop's statistics: what a map has
    no room for is in none of the shop's counts, and peers have no such bound.
    """
    rows = events.group_by("user_id").len().filter(pl.col("len") <= SAMPLE_ROWS).sort("user_id")
    events = events.join(rows, on="user_id", how="semi", maintain_order="left")
    busy = rows.sort("len", "user_id", descending=True).head(SAMPLE // 4)
    chosen = pl.concat([busy, rows.sample(min(SAMPLE, rows.height), seed=0)]).unique("user_id").select("user_id")
    mine = pl.concat(profiles.join(chosen, on="user_id", how="semi") for profiles in ours(events, items, False))
    for name, work in peers(events, items).items():
        theirs = _frame(work()).join(chosen, on="user_id", how="semi")
        if found := differences(mine.select("user_id", *FEATURES), theirs):
            sys.exit(f"{name} and ours differ for {len(found)} of {chosen.height} users, as {found[0]}")
    return dict.fromkeys(peers(events, items), chosen.height)


def _frame(table: Any) -> pl.DataFrame:
    frame = table if isinstance(table, pl.DataFrame) else pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def peers(events: pl.DataFrame, items: Items) -> dict[str, Callable[[], Any]]:
    """Each peer as a work without arguments."""
    return {
        "polars": lambda: polars_features(events, items.frame, PEER_ENGINE),
        "duckdb": lambda: duckdb_features(events, items.frame),
    }


def works(events: pl.DataFrame, items: Items) -> dict[str, Callable[[], Any]]:
    """Everything that is timed on one set of events."""

    def run(everything: bool) -> int:
        return sum(profiles.height for profiles in ours(events, items, everything))

    return {"behaviour": partial(run, False), **peers(events, items), "everything": partial(run, True)}


def world(full: bool, heavy: float) -> tuple[pl.DataFrame, Items]:
    """The events and the catalogue, the same in every process."""
    rng = np.random.default_rng(20_240_601)
    items = fold_events.catalogue(WIDTH, rng)
    rows, users = (5_000_000, 1_000_000) if full else (1_000_000, 200_000)
    return fold_events.events(rows, users, items, rng, heavy=heavy), items


def groups_seconds(events: pl.DataFrame, items: Items, share: int) -> dict[str, float]:
    """One run of Ray Data's map_groups on every `share`-th user's rows, after a first on few to start the workers."""
    import time

    import ray
    from fold_groups import ray_features

    some = events.filter(pl.col("user_id").hash(seed=1) % share == 0)
    found = {"env_vars": {"PYTHONPATH": str(HERE)}}  # where the workers find this folder's modules
    with ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=found):
        ray.data.DataContext.get_current().enable_progress_bars = False
        ray_features(some.head(2_000), items.frame)
        began = time.perf_counter()
        users = ray_features(some, items.frame)
        seconds = time.perf_counter() - began
    assert users == some["user_id"].n_unique()
    return {"rows": some.height, "users": users, "seconds": round(seconds, 2)}


def memory_of(name: str, full: bool) -> float:
    """Peak GiB of one work beyond the events, in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, *(["--full"] if full else [])]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(said.splitlines()[-1]))


def print_memory(name: str, full: bool) -> None:
    """The other side of `memory_of`."""
    events, items = world(full, 0.0)
    with peak_memory() as memory:
        works(events, items)[name]()
    print(json.dumps(round((memory.peak_bytes - memory.start_bytes) / 2**30, 2)))


def show(times: dict[str, dict[str, float]], rows: int, memory: dict[str, float], ratios: dict[str, float]) -> None:
    """The table that a person reads."""
    table = Table("", "seconds", "events/s", "peak GiB", box=box.SIMPLE_HEAD)
    for name, each in times.items():
        seconds = each["median_seconds"]
        table.add_row(name, f"{seconds:.2f}", f"{rows / seconds:,.0f}", f"{memory.get(name, float('nan')):.1f}")
    Console().print(table, *(f"{name}: {value:.2f}" for name, value in ratios.items()), sep="\n")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--memory", help="only measure the peak memory of this work and print it")
    args = parser.parse_args()
    if args.memory:
        print_memory(args.memory, args.full)
        return
    repeats = 3 if args.full else REPEATS  # a round of the full form takes minutes
    (events, items), (skewed, _) = world(args.full, 0.0), world(args.full, HEAVY)
    compared = compare(events, items)
    timed = {**works(events, items), "skewed": works(skewed, items)["behaviour"]}
    seconds, _ = in_turn(timed, repeats)
    times = {name: summary(each) for name, each in seconds.items()}
    median = {name: each["median_seconds"] for name, each in times.items()}
    memory = {name: memory_of(name, args.full) for name in works(events, items)}
    groups = groups_seconds(events, items, 50 if args.full else 100)
    ratios = {
        "polars_over_ours": median["polars"] / median["behaviour"],
        "duckdb_over_ours": median["duckdb"] / median["behaviour"],
        "map_groups_over_ours_per_row": groups["seconds"] / groups["rows"] * events.height / median["behaviour"],
        "skewed_over_uniform": median["skewed"] / median["behaviour"],
        "everything_over_behaviour": median["everything"] / median["behaviour"],
    }
    show(times, events.height, memory, ratios)
    body = {
        "what": f"fold and fuse {events.height:,} events of {events['user_id'].n_unique():,} users",
        "machine": machine("polars", "duckdb", "ray", "pyarrow", "numpy"),
        "compared_users": compared,
        "heaviest_users_rows": {
            name: int(each["user_id"].value_counts()["count"].max())
            for name, each in (("uniform", events), ("skewed", skewed))
        },
        "times": times,
        "peak_gib_beyond_events": memory,
        "map_groups": groups,
    }
    finish("fold", body, ratios, args.out, args.full)


if __name__ == "__main__":
    main()

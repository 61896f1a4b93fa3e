"""A shop of five items, two tag trees and vectors of four numbers: small enough to reckon every profile by hand."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st

from ray_profile import schema
from ray_profile.encode.heads import Probe, TagMatrix
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.encode.terms import Gazetteer
from ray_profile.profile import statistics
from ray_profile.profile.facet import FoldContext, FuseContext
from ray_profile.profile.fold import fold, state_schema
from ray_profile.profile.fuse import fuse
from ray_profile.profile.items import ITEM_DTYPES, Items
from ray_profile.profile.periods import end_of
from ray_profile.profile.tagging import Tagger

WIDTH = 4
START = dt.datetime(2024, 1, 31, 20, tzinfo=dt.UTC)

TAXONOMY = Taxonomy.parse(
    {
        "tags": [
            {"id": "music", "name": "Music"},
            {"id": "guitar", "name": "Guitar", "parent": "music", "categories": ["Guitars"]},
            {"id": "kitchen", "name": "厨房"},
            {"id": "coffee", "name": "咖啡", "parent": "kitchen", "categories": ["Coffee Makers"]},
            {"id": "outdoor", "name": "Outdoor"},
        ]
    }
)
#: Texts along an axis carry its tag: 0 guitar, 1 coffee, 2 outdoor; axis 3 says nothing.
MATRIX = TagMatrix(("guitar", "coffee", "outdoor"), np.eye(3, WIDTH, dtype=np.float32), np.full(3, 0.6, np.float32))
TAGGER = Tagger(TAXONOMY, MATRIX)
#: Axis 3 decides: above 1/2 the probe leans to positive, below it to negative.
PROBE = Probe(
    np.array([[0, 0, 0, -4], [0, 0, 0, 0], [0, 0, 0, 4]], np.float32), np.array([2, 0, -2], np.float32), {"C": 1.0}
)
GAZETTEER = Gazetteer.from_names(brands=["Fender", "星巴克"], categories=["Guitars"])

GUITAR, COFFEE, OUTDOOR, PLAIN = (np.eye(WIDTH)[axis].tolist() for axis in range(WIDTH))
BOTH = [0.6, 0.0, 0.0, 0.8]


def _raw(vector: list[float] | None) -> bytes | None:
    return None if vector is None else np.array(vector, dtype="<f2").tobytes()


def items_table(entries: Iterable[Mapping[str, Any]], tagger: Tagger = TAGGER) -> pl.DataFrame:
    """Items as plain mappings (`vector` as numbers) -> ITEM_DTYPES, tagged."""
    entries = list(entries)
    filled = [{**dict.fromkeys(ITEM_DTYPES), "implicit": False, **entry} for entry in entries]
    table = pl.DataFrame([{**entry, "vector": _raw(entry["vector"])} for entry in filled], schema=ITEM_DTYPES)
    known = table["vector"].is_not_null().to_numpy()
    vectors = np.array([entry["vector"] or [0.0] * WIDTH for entry in filled], dtype=np.float16).reshape(-1, WIDTH)
    tags = tagger.tag_items(table, vectors, known)
    packed = tags.group_by("row", maintain_order=True).agg(pl.struct("tag", "source", "score").alias("tags"))
    table = table.drop("tags").with_row_index("row").join(packed, on="row", how="left", maintain_order="left")
    return table.select(pl.col(name).cast(dtype) for name, dtype in ITEM_DTYPES.items())


CATALOGUE: tuple[dict[str, Any], ...] = (
    {
        "item_id": "g1",
        "title": "Fender Stratocaster",
        "categories": ["Music", "Guitars", "Electric"],
        "brand": "Fender",
        "vector": GUITAR,
    },
    {"item_id": "g2", "title": "Acoustic", "categories": ["Music", "Guitars"], "brand": "Yamaha", "vector": BOTH},
    {
        "item_id": "咖啡1",
        "title": "咖啡机",
        "categories": ["Kitchen", "Coffee Makers"],
        "brand": "星巴克",
        "vector": COFFEE,
    },
    {"item_id": "t1", "title": "Tent", "categories": ["Outdoor"], "vector": OUTDOOR},
    {"item_id": "x1"},
)
ITEMS = Items.of(items_table(CATALOGUE), WIDTH)
PATHS = {entry["item_id"]: entry.get("categories", []) for entry in CATALOGUE}
BRANDS = {entry["item_id"]: entry.get("brand") for entry in CATALOGUE}


def rows_of(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Plain rows -> schema.ROWS with `vector`. `whole_day` leaves the hour out; equal rows get equal ids."""
    empty = pl.from_arrow(schema.ROWS.empty_table())
    assert isinstance(empty, pl.DataFrame)
    dtypes = {**empty.schema, "vector": pl.Array(pl.Float16, WIDTH)}
    full = []
    for row in rows:
        ts = row["ts"]
        given = {name: value for name, value in row.items() if name in dtypes}
        hashed = hashlib.sha256(repr(sorted(row.items(), key=lambda pair: pair[0])).encode()).hexdigest()[:12]
        hour = None if row.get("whole_day") else ts.hour
        full.append({**dict.fromkeys(dtypes), "id": hashed, "hour": hour, "weekday": ts.weekday(), **given})
    return pl.DataFrame(full, schema=dtypes)


def at(days: float = 0.0, minutes: float = 0.0) -> dt.datetime:
    """A time after START."""
    return START + dt.timedelta(days=days, minutes=minutes)


def folding(**changes: Any) -> FoldContext:
    """The context of a fold of this shop."""
    return FoldContext(
        **{"items": ITEMS, "width": WIDTH, "tagger": TAGGER, "probe": PROBE, "gazetteer": GAZETTEER, **changes}
    )


def states_of(rows: Iterable[Mapping[str, Any]], **changes: Any) -> pl.DataFrame:
    """Plain rows -> states."""
    return fold(rows_of(rows), folding(**changes))


def profiles_of(states: pl.DataFrame, as_of: dt.datetime | None = None, **changes: Any) -> pl.DataFrame:
    """States -> profiles; by default at the end of the newest period, with the statistics of these states."""
    period = changes.get("period", "month")
    if as_of is None:
        newest = states["period"].max()
        as_of = end_of(newest, period) if isinstance(newest, dt.date) else START
    given = {
        "items": ITEMS,
        "as_of": as_of,
        "statistics": statistics.of_states(states),
        "statistics_version": 1,
        "encoder_digest": "e0",
        "width": WIDTH,
        **changes,
    }
    return fuse(states, FuseContext(**given))


def profile_of(rows: Iterable[Mapping[str, Any]], **changes: Any) -> dict[str, Any]:
    """Rows of one user -> the profile as a plain mapping. `changes` go to fold and fuse as their fields say."""
    of_fuse = {name: changes[name] for name in changes if name in FuseContext.__dataclass_fields__}
    of_fold = {name: changes[name] for name in changes if name in FoldContext.__dataclass_fields__}
    (profile,) = profiles_of(states_of(rows, **of_fold), **of_fuse).to_dicts()
    return profile


def merged(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """States of blocks -> the states of the whole."""
    return state_schema(WIDTH).merge(pl.concat(parts))


def difference(a: Any, b: Any, where: str = "", tolerance: float = 1e-9) -> str | None:
    """The first place at which two plain values differ, floats by more than `tolerance`; None where they are equal."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        # Vectors are float32, whose last bit is 6e-8.
        loose = {key: max(tolerance, 1e-6) if key in ("embedding", "text_vector") else tolerance for key in a}
        return next((d for key in a if (d := difference(a[key], b[key], f"{where}.{key}", loose[key]))), None)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        found = (difference(x, y, f"{where}[{i}]", tolerance) for i, (x, y) in enumerate(zip(a, b, strict=True)))
        return next((each for each in found if each), None)
    if isinstance(a, float) and isinstance(b, float):
        return None if abs(a - b) <= tolerance * max(1.0, abs(a), abs(b)) else f"{where}: {a!r} != {b!r}"
    return None if a == b else f"{where}: {a!r} != {b!r}"


def assert_same(left: pl.DataFrame, right: pl.DataFrame) -> None:
    """Two frames are equal: strings, integers and order identical, floats to 1e-9."""
    assert left.schema == right.schema
    found = difference(left.to_dicts(), right.to_dicts())
    assert found is None, found


TEXTS = (
    None,
    "Great Fender guitar. Great guitar strings, great guitar strings!",
    "星巴克咖啡很好喝，咖啡机性价比高",
    "😀👍",
    "Broke after two days and the seller never answered me",
)

#: One row of anything a shop may log, of three users, over four months; times in clusters, so that ties are common.
ROW = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["ann", "李雷", "👩‍🚀"]),
        "ts": st.builds(lambda days, steps: at(days, 10 * steps), st.sampled_from([0, 1, 30, 62]), st.integers(0, 30)),
        "kind": st.sampled_from(schema.KINDS),
        "item_id": st.sampled_from([None, "ghost", *PATHS]),
        "text": st.sampled_from(TEXTS),
        "vector": st.sampled_from([None, GUITAR, COFFEE, PLAIN, BOTH]),
        "rating": st.sampled_from([None, 1.0, 3.0, 4.5, 5.0]),
        "quantity": st.sampled_from([None, 1.0, 2.0]),
        "price": st.sampled_from([None, 9.99, 64.0, 500.1]),
        "order_id": st.sampled_from([None, None, "o1", "订单2"]),
        "place": st.sampled_from([None, "Berlin", "上海"]),
        "device": st.sampled_from([None, "phone"]),
        "whole_day": st.booleans(),
    }
).map(
    lambda row: {
        **row,
        "rating": row["rating"] if row["kind"] == "review" else None,
        "text": row["text"] if row["kind"] in ("review", "search") else None,
        "vector": row["vector"] if row["kind"] in ("review", "search") and row["text"] else None,
    }
)

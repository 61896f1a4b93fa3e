"""Equality of roots as the design defines it: sorted by key, integers, strings and ids identical, floats to 1e-6.

Vectors that were encoded again in other batches agree to cosine 0.9999.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from ray_profile.pipelines import tables
from ray_profile.profile.fold import state_schema
from ray_profile.store.root import Root
from ray_profile.store.tables import Table, read_files

VECTORS = ("embedding", "text_vector")
COSINE = 0.9999


def profiles_of(address: object) -> pl.DataFrame:
    """All profiles of a root, sorted by user."""
    table = Table(Root.existing(str(address)), "profiles")
    handle = table.open()
    assert handle is not None, f"{address} has no profiles"
    frame = pl.from_arrow(read_files(table, handle.files()))
    assert isinstance(frame, pl.DataFrame)
    return frame.sort("user_id")


def states_of(address: object, width: int) -> pl.DataFrame:
    """All states of a root, merged, sorted by user and period."""
    root = Root.existing(str(address))
    handle = tables.states_table(root, width).open()
    assert handle is not None, f"{address} has no states"
    return state_schema(width).merge(tables.read_states(root, width, handle.files()))


def assert_equal_roots(left: object, right: object, width: int, ignore: tuple[str, ...] = ()) -> None:
    """The states and the profiles of two roots are equal."""
    assert_equal_frames(states_of(left, width), states_of(right, width))
    assert_equal_frames(profiles_of(left).drop(ignore), profiles_of(right).drop(ignore))


def assert_equal_frames(left: pl.DataFrame, right: pl.DataFrame) -> None:
    assert left.schema == right.schema
    assert left.height == right.height
    for name in left.columns:
        if name in VECTORS:
            _assert_alike(name, left[name], right[name])
        else:
            differ = _difference(left[name].to_list(), right[name].to_list(), name)
            assert differ is None, differ


def _assert_alike(name: str, left: pl.Series, right: pl.Series) -> None:
    assert left.is_null().equals(right.is_null()), f"{name}: nulls differ"
    a, b = (np.array(each.drop_nulls().to_list(), dtype=np.float64) for each in (left, right))
    if len(a):
        a, b = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (a, b))
        assert (a * b).sum(axis=1).min() >= COSINE, f"{name}: vectors differ"


def _difference(a: Any, b: Any, where: str) -> str | None:
    """The first place at which two plain values differ, or None."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next((d for key in a if (d := _difference(a[key], b[key], f"{where}.{key}"))), None)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return next(
            (d for i, (x, y) in enumerate(zip(a, b, strict=True)) if (d := _difference(x, y, f"{where}[{i}]"))), None
        )
    if isinstance(a, float) and isinstance(b, float):
        return None if abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b)) or a == b else f"{where}: {a!r} != {b!r}"
    return None if a == b else f"{where}: {a!r} != {b!r}"

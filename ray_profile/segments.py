"""Rows in runs: put them in order, reduce each run, pack runs into lists. NumPy and Arrow, without a hash table.

Most groups of a shop's rows are small, so that finding them by sorting numbers and reducing slices of arrays costs less
than hashing tuples of strings. N is the number of rows, R that of runs. Strings are told apart by their rank, whole
rows by 64 bits: the group above, the rank below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

Aggregate = Literal["sum", "min", "max"]
Index = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Halves = npt.NDArray[np.uint32]

_UFUNC = {"sum": np.add, "min": np.minimum, "max": np.maximum}
_REDUCED_AS_NUMBERS = (pl.Int64, pl.Float64, pl.Datetime)


@dataclass(frozen=True)
class Runs:
    """Rows in order, and the runs among them. `order` (N,): row numbers; `starts` (R,): where in it each run begins."""

    order: Index
    starts: Index

    @classmethod
    def of(cls, keys: Words) -> Runs:
        """Runs of equal keys (N,), ascending."""
        if (keys[1:] >= keys[:-1]).all():
            return cls(np.arange(len(keys)), starts(keys))
        order = np.argsort(keys)
        return cls(order, starts(keys[order]))

    @property
    def firsts(self) -> Index:
        """A row of each run (R,)."""
        return self.order[self.starts]

    @cached_property
    def lengths(self) -> Index:
        """(R,)"""
        return lengths(self.starts, len(self.order))

    @cached_property
    def numbers(self) -> Index:
        """The number of each ordered row's run (N,)."""
        return np.repeat(np.arange(len(self.starts)), self.lengths)

    @cached_property
    def of_rows(self) -> Index:
        """The number of each row's run (N,), in the rows' own order."""
        of_rows = np.empty(len(self.order), np.int64)
        of_rows[self.order] = self.numbers
        return of_rows

    def reduce(self, values: pl.Series, how: Aggregate) -> pl.Series:
        """One value of the same type per run; nulls are passed over."""
        if values.null_count() == 0 and values.dtype in _REDUCED_AS_NUMBERS:
            numbers = values.to_physical().to_numpy()[self.order]
            reduced = _UFUNC[how].reduceat(numbers, self.starts) if len(numbers) else numbers
            return pl.Series(values.name, reduced).cast(values.dtype)
        column = pl.col(values.name)
        chosen = {"sum": column.sum(), "min": column.min(), "max": column.max()}[how]
        rows = pl.DataFrame({"run": self.numbers, values.name: values.gather(self.order)})
        return rows.group_by("run", maintain_order=True).agg(chosen)[values.name]

    def over(self, values: pl.Series, how: Aggregate) -> pl.Series:
        """The reduced value of each row's run, one per row (N,)."""
        return self.reduce(values, how).gather(self.of_rows)


def starts(ordered: npt.NDArray[Any]) -> Index:
    """Where each run of equal values begins, (R,)."""
    if len(ordered) == 0:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def lengths(begin: Index, rows: int) -> Index:
    """How long each run is (R,), of `rows` rows in all."""
    return np.diff(begin, append=rows)


def ranks(values: pl.Series) -> Halves:
    """A number for each string or sorted Enum that orders as it does, the same for equal ones; none may be null."""
    if isinstance(values.dtype, pl.Enum):
        return values.to_physical().cast(pl.UInt32).to_numpy()
    distinct = values.unique().sort().to_frame("value").with_row_index("rank")
    ranked = values.to_frame("value").join(distinct, on="value", how="left", maintain_order="left")
    return ranked["rank"].to_numpy()


def enumerated(*columns: pl.Series) -> list[pl.Series]:
    """Strings as one sorted Enum of all that stand in any of the columns: ranked once, however often they are used."""
    distinct = pl.concat(columns).unique().drop_nulls().sort()
    return [column.cast(pl.Enum(distinct)) for column in columns]


def words(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Words:
    """Two numbers below 2^32 as one that orders by the first, then by the second."""
    return (above.astype(np.uint64) << np.uint64(32)) | below.astype(np.uint64)


def halves(numbers: npt.NDArray[Any], falling: bool = False) -> Halves:
    """Floats or integers (N,) in 32 bits that never contradict their order, but may tie where they differ."""
    if numbers.dtype.kind == "f":
        bits = (numbers.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0 is 0
        rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    else:
        above = (numbers - numbers.min()).astype(np.uint64) if len(numbers) else numbers.astype(np.uint64)
        excess = max(int(above.max(initial=0)).bit_length() - 32, 0)
        rising = (above >> np.uint64(excess)).astype(np.uint32)
    return ~rising if falling else rising


def ordered(keys: Words, rows: pl.DataFrame, by: Mapping[str, bool]) -> Index:
    """Row numbers (N,) by `keys`; rows with equal ones by the columns `by` (name -> falling), nulls last."""
    runs = Runs.of(keys)
    if len(runs.starts) == len(keys):
        return runs.order
    tied = np.repeat(runs.lengths > 1, runs.lengths)
    order, at = runs.order, runs.order[tied]
    ties = rows[at].select(pl.Series("_run", runs.numbers[tied]), *by)
    sorted_ties = ties.select(pl.arg_sort_by("_run", *by, descending=[False, *by.values()], nulls_last=True))
    order = order.copy()
    order[tied] = at[sorted_ties.to_series().to_numpy()]
    return order


def places(ordered_groups: npt.NDArray[Any]) -> Index:
    """How many rows of the same group stand before each (N,); groups are in order."""
    begin = starts(ordered_groups)
    return np.arange(len(ordered_groups)) - np.repeat(begin, lengths(begin, len(ordered_groups)))


def first_of_each(ordered_groups: npt.NDArray[Any], values: pl.Series) -> npt.NDArray[np.bool_]:
    """Which rows (N,) are the first of their group, which are in order, with their value."""
    mixed = values.hash().to_numpy() ^ (ordered_groups.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    if (np.diff(np.sort(mixed)) != 0).all():  # two that are equal would be so here too
        return np.ones(len(values), np.bool_)
    return pl.DataFrame({"group": ordered_groups, "value": values}).to_struct().is_first_distinct().to_numpy()


def lists(sizes: Index, values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Lists of the given sizes (L,) over consecutive values, sharing their memory."""
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    inner = values.rechunk().to_arrow(compat_level=pl.CompatLevel.newest())
    made = pl.Series(values.name, pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), inner))
    return made if made.dtype == dtype else made.cast(dtype)


def listed(rows: pl.DataFrame, by: str, name: str, dtype: pl.DataType) -> pl.DataFrame:
    """Rows [by, *fields], ordered by `by` -> [by, name]: per value of `by` the list of its structs."""
    assert isinstance(dtype, pl.List)
    assert isinstance(dtype.inner, pl.Struct)
    group = rows[by].to_numpy()
    begin = starts(group)
    values = rows.select(field.name for field in dtype.inner.fields).to_struct(name)
    column = lists(lengths(begin, len(group)), values, dtype)
    return pl.DataFrame([rows[by].gather(begin), column])


def unlisted(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    """Rows [*others, name] with `name` a list of structs -> one row per struct: the others, then its fields."""
    sizes = rows[name].list.len().fill_null(0).to_numpy()
    values = rows[name].explode(empty_as_null=False, keep_nulls=False).struct.unnest()
    repeated = np.repeat(np.arange(rows.height), sizes)
    return pl.DataFrame([*rows.drop(name)[repeated].iter_columns(), *values.iter_columns()])


def spaced(groups: npt.NDArray[Any], column: pl.Series, height: int) -> pl.Series:
    """Values of the groups (G,), ascending, as a column of `height` rows; a group without one gets null, or no list."""
    if len(groups) == height:
        return column
    if isinstance(column.dtype, pl.List) and isinstance(column.dtype.inner, pl.Struct):
        sizes = np.zeros(height, np.int64)
        sizes[groups] = column.list.len().to_numpy()
        return lists(sizes, column.explode(empty_as_null=False, keep_nulls=False), column.dtype)
    where = np.full(height, len(column), np.int64)
    where[groups] = np.arange(len(column))
    return column.extend_constant(None, 1).gather(where)

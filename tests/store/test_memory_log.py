"""The table in memory that test_exactly_once.py relies on conflicts exactly where delta-rs does."""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from store_world import Commit, MemoryHandle, MemoryLog, World

from ray_profile.errors import FencedError
from ray_profile.store.root import Root, RootFacts
from ray_profile.store.tables import DataFile, Handle, Table, write_file

SCHEMA = pa.schema([("user_id", pa.large_string())])


@dataclass
class Unchecked(World):
    """A world whose files have no content to check."""

    def commit(self, log: str, commit: Commit) -> None:
        self.logs[log].append(commit)


@dataclass
class Pair:
    """One version of the same table in both worlds."""

    real: Handle
    memory: MemoryHandle


@st.composite
def acts(draw: st.DrawFn) -> tuple[str, int, frozenset[int], int, str | None]:
    kind = draw(st.sampled_from(["open", "append", "replace_files", "replace_buckets"]))
    which = draw(st.integers(0, 3))  # of the handles that are open
    buckets = draw(st.frozensets(st.integers(0, 2), min_size=1, max_size=2))
    removes = draw(st.integers(0, 2))
    return kind, which, buckets, removes, draw(st.sampled_from([None, "writer", "fused"]))


def _act(table: Table, pair: Pair, kind: str, buckets: frozenset[int], removes: int, shared: str | None) -> None:
    wave = uuid.uuid4().hex
    adds = [write_file(table, bucket, f"{wave}-0", pa.table({"user_id": ["a"]}, SCHEMA)) for bucket in sorted(buckets)]
    transactions = {wave: 1} | ({} if shared is None else {shared: (pair.memory.transaction(shared) or 0) + 1})
    outcomes = []
    for handle in (pair.real, pair.memory):
        try:
            _commit(handle, kind, adds, buckets, removes, transactions)
            outcomes.append("committed")
        except FencedError:
            outcomes.append("fenced")
    assert outcomes[0] == outcomes[1], (kind, outcomes)


def _commit(
    handle: Any, kind: str, adds: list[DataFile], buckets: frozenset[int], removes: int, transactions: dict[str, int]
) -> None:
    if kind == "append":
        handle.append(adds, transactions)
    elif kind == "replace_files":
        held = sorted(handle.files(), key=lambda file: file.path)
        handle.replace_files(adds, held[:removes], transactions)
    else:
        handle.replace_buckets(adds, buckets, transactions)


@settings(max_examples=40, deadline=None)
@given(st.lists(acts(), min_size=4, max_size=14))
def test_it_behaves_as_delta_does(script: list[tuple[str, int, frozenset[int], int, str | None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = Table(Root.open(f"{folder}/root", RootFacts(1, 3, "month", 90.0, None)), "states", SCHEMA)
        table.create()
        log = MemoryLog(Unchecked(), SimpleNamespace(request=lambda: None, faults=[]), "states")  # type: ignore[arg-type]

        def opened() -> Pair:
            real = table.open()
            assert real is not None
            return Pair(real, log.open())

        handles = [opened()]
        for kind, which, buckets, removes, shared in script:
            if kind == "open" or not handles:
                handles = [*handles, opened()][-4:]
            else:
                _act(table, handles.pop(which % len(handles)), kind, buckets, removes, shared)
        last = opened()
        assert {file.path for file in last.real.files()} == {file.path for file in last.memory.files()}
        assert last.real.tombstones() == last.memory.tombstones()
        for app_id in ("writer", "fused", "nobody"):
            assert last.real.transaction(app_id) == last.memory.transaction(app_id)

"""A profile of rows that are sent is the one that `build` makes of the same rows, and nothing of them is kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ray_profile.config import Config, parse
from ray_profile.encode.text import TextEncoder
from ray_profile.pipelines import probe
from ray_profile.pipelines.build import build
from ray_profile.pipelines.computing import Computing
from ray_profile.pipelines.lookup import profile_of
from ray_profile.pipelines.run import Run
from ray_profile.pipelines.wave import make_tagger
from ray_profile.profile.document import FIELDS
from ray_profile.serve.problems import Problem

CLOCK = datetime(2025, 7, 1, tzinfo=UTC)
ROWS: list[dict[str, Any]] = [
    {"kind": "review", "ts": "2025-03-01T10:00:00", "item_id": "tea-1", "rating": 5, "text": "Lovely tea, 茶香很浓."},
    {
        "kind": "review",
        "ts": "2025-05-02T20:00:00",
        "item_id": "mug-1",
        "rating": 1,
        "text": "It leaks, call 555-010-4477.",
    },
    {
        "kind": "purchase",
        "ts": "2025-05-01T09:00:00",
        "item_id": "tea-1",
        "price": 12.5,
        "quantity": 2,
        "order_id": "o1",
    },
    {
        "kind": "purchase",
        "ts": "2025-05-01T09:00:00",
        "item_id": "mug-1",
        "price": 30,
        "order_id": "o1",
        "place": "杭州",
    },
    {"kind": "search", "ts": "2025-04-30T23:59:00", "text": "ceramic mug", "device": "phone"},
    {"kind": "view", "ts": "2025-04-30T23:58:00", "item_id": "mug-1"},
]
for at, row in enumerate(ROWS):
    row["id"] = f"row-{at}"  # else it would be a hash, of the user too
ITEMS = [
    {"item_id": "tea-1", "title": "Green tea", "categories": "Drinks", "price": 12.5, "brand": "Leaf"},
    {"item_id": "mug-1", "title": "Mug", "categories": "Kitchen", "price": 30, "brand": "Clay"},
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Config:
    """A shop with one customer."""
    folder = tmp_path_factory.mktemp("one")
    for name, rows in (("rows", [{**row, "user_id": "anna"} for row in ROWS]), ("items", ITEMS)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    columns = (
        "id",
        "user_id",
        "item_id",
        "ts",
        "kind",
        "text",
        "rating",
        "quantity",
        "price",
        "order_id",
        "place",
        "device",
    )
    of_items = {name: name for name in ITEMS[0]}
    told = {
        "root": str(folder / "root"),
        "encoder": {"model": str(encoder), "dtype": "float32"},
        "sources": {
            "rows": {"format": "columns", "paths": [str(folder / "rows.jsonl")], "columns": {c: c for c in columns}},
            "items": {
                "format": "columns",
                "paths": [str(folder / "items.jsonl")],
                "columns": of_items,
            },
        },
    }
    made = parse(told)
    build(made, local=True, clock=CLOCK)
    return made


@pytest.fixture(scope="module")
def computing(config: Config) -> Computing:
    run = Run.open(config, CLOCK)
    encoder = TextEncoder.load(run.config.encoder)
    return Computing(run, encoder, make_tagger(run, encoder), probe.stored(run.root))


def test_it_is_the_profile_that_build_makes(config: Config, computing: Computing) -> None:
    before = _files(config)
    found = computing(ROWS, CLOCK)
    built = json.loads(json.dumps(profile_of(config, "anna"), default=lambda moment: moment.isoformat()))
    assert found["profile"].pop("user_id") is None
    for name in FIELDS[1:]:
        assert _close(found["profile"][name], _without_evidence(built[name])), name
    assert [each["tag"] for each in found["why"]["tags"]] == [each["tag"] for each in built["tags"]]
    kept = json.dumps(found, ensure_ascii=False)
    assert "555-010" not in kept, "what is sent is redacted as what is built"
    assert "茶香很浓" in kept
    assert _files(config) == before, "nothing is kept under the root"


def test_the_order_of_the_rows_makes_no_difference(computing: Computing) -> None:
    one, other = computing(ROWS, CLOCK), computing(ROWS[::-1], CLOCK)
    assert one == other


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no row to make a profile of"),
        ([ROWS[0], {"kind": "review", "ts": "soon", "text": "x", "rating": 3}], "rows.1: the time cannot be read"),
        ([{"kind": "view", "ts": "1970-01-01", "item_id": "a"}], "rows.0: the time is before 1990"),
        ([{"kind": "view", "ts": "2025-01-01"}], "rows.0: an event other than a search names no item"),
        ([{"kind": "search", "ts": "2025-01-01"}], "rows.0: a row that lives by its text"),
    ],
)
def test_a_row_that_build_would_not_take_is_named(computing: Computing, rows: list[Any], said: str) -> None:
    with pytest.raises(Problem, match=said) as caught:
        computing(rows, CLOCK)
    assert caught.value.status == 422


def _files(config: Config) -> list[str]:
    return sorted(str(path) for path in Path(config.root).rglob("*"))


def _without_evidence(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_evidence(each) for name, each in value.items() if name != "evidence"}
    return [_without_evidence(each) for each in value] if isinstance(value, list) else value


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_close, one, other))
    return one == pytest.approx(other, abs=1e-6) if isinstance(one, float) else one == other

"""The catalogue as facets see it."""

from __future__ import annotations

import facet_world as world
import numpy as np
import polars as pl
import pytest

from ray_profile.profile.items import ITEM_DTYPES, LEVELS, Items, levels


def test_items_are_numbered_by_id_and_vectors_stay_with_theirs() -> None:
    backwards = Items.of(world.items_table(world.CATALOGUE[::-1]), world.WIDTH)
    for items in (world.ITEMS, backwards):
        assert items.frame["item_id"].to_list() == sorted(items.frame["item_id"])
        assert items.frame["item"].to_list() == list(range(5))
        vectors = dict(zip(items.frame["item_id"], items.vectors.tolist(), strict=True))
        assert vectors["咖啡1"] == world.COFFEE
        assert vectors["t1"] == world.OUTDOOR
        assert vectors["x1"] == [0.0] * 4
        assert items.frame.filter(~pl.Series(items.known))["item_id"].to_list() == ["x1"]
    assert "vector" not in backwards.frame.columns


def test_vectors_survive_a_table_that_was_sliced_and_chunked() -> None:
    table = world.items_table(world.CATALOGUE)
    pieces = pl.concat([table.slice(3), table.slice(1, 2), table.head(1)], rechunk=False)
    again = Items.of(pieces, world.WIDTH)
    assert np.array_equal(again.vectors, world.ITEMS.vectors)
    tail = Items.of(table.slice(2), world.WIDTH)
    assert tail.vectors[tail.known].tolist() == [world.OUTDOOR, world.COFFEE]


def test_no_catalogue_is_an_empty_one() -> None:
    none = Items.none(7)
    assert none.frame.is_empty()
    assert none.vectors.shape == (0, 7)
    assert none.vectors.dtype == np.float16
    assert none.known.shape == (0,)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (None, []),
        ([], []),
        ([None], []),
        (["家居"], ["家居"]),
        (["A", None, "B"], ["A", "A > B"]),
        (["A", "A"], ["A", "A > A"]),
        (["A", "B", "C", "D", "E"], ["A", "A > B", "A > B > C"]),
    ],
)
def test_levels_are_the_paths_from_the_root(path: list[str | None] | None, expected: list[str]) -> None:
    frame = pl.DataFrame({"categories": [path]}, schema={"categories": pl.List(pl.String)})
    found = frame.select(levels("categories")).item().to_list()
    assert found == expected
    assert len(found) <= LEVELS


def test_the_frame_holds_every_column_of_the_table_but_the_vector() -> None:
    assert set(world.ITEMS.frame.columns) == {"item", "levels", *ITEM_DTYPES} - {"vector"}

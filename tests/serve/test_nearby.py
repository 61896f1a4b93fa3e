"""Users like a user, items like an item, and items for a user: the true nearest, never what is bought, and why."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest

from ray_profile.pipelines.tables import frame_of, items_table, profiles_table
from ray_profile.serve import nearby
from ray_profile.sources.redact import pseudonym
from ray_profile.store.root import Root
from ray_profile.store.tables import Table, read_files


def rows_of(server: Any, table_of: Any) -> pl.DataFrame:
    """A table of the served root."""
    table: Table = table_of(Root.existing(server.config.root))
    handle = table.open()
    assert handle is not None
    return frame_of(read_files(table, handle.files()))


@pytest.fixture(scope="module")
def profiles(server: Any) -> pl.DataFrame:
    return rows_of(server, profiles_table)


@pytest.fixture(scope="module")
def items(server: Any) -> pl.DataFrame:
    return rows_of(server, items_table).filter(pl.col("vector").is_not_null())


def matrix(items: pl.DataFrame) -> np.ndarray:
    return np.stack([np.frombuffer(each, "<f2") for each in items["vector"]]).astype(np.float32)


def own(server: Any, profiles: pl.DataFrame, user: str) -> dict[str, Any]:
    key = server.config.privacy.key()
    return profiles.row(by_predicate=pl.col("user_id") == pseudonym(user, key), named=True)


def test_similar_users_are_those_with_the_nearest_vectors(server: Any, user: str, profiles: pl.DataFrame) -> None:
    mine = own(server, profiles, user)
    found = server.get(f"/v1/users/{quote(user)}/similar?k=5")
    others = profiles.filter(pl.col("embedding").is_not_null() & (pl.col("user_id") != mine["user_id"]))
    vectors = np.stack(others["embedding"].to_list()).astype(np.float16).astype(np.float32)
    scores = dict(zip(others["user_id"], vectors @ np.asarray(mine["embedding"], np.float16).astype("f4"), strict=True))
    best = sorted(scores, key=lambda name: (-round(scores[name], 6), name))[:5]
    assert [each["user_id"] for each in found["users"]] == best
    assert [each["similarity"] for each in found["users"]] == pytest.approx([scores[name] for name in best], abs=1e-5)
    tags = {tag["tag"] for tag in mine["tags"]}
    for each in found["users"]:
        theirs = {
            tag["tag"] for tag in others.row(by_predicate=pl.col("user_id") == each["user_id"], named=True)["tags"]
        }
        assert set(each["tags"]) <= tags & theirs
        assert bool(each["tags"]) == bool(tags & theirs)


def test_items_for_a_user_are_the_nearest_that_they_have_not_bought(
    server: Any, user: str, profiles: pl.DataFrame, items: pl.DataFrame
) -> None:
    mine = own(server, profiles, user)
    bought = {each["item_id"] for each in mine["bought"]}
    assert bought, "this customer has bought things"
    found = server.get(f"/v1/users/{quote(user)}/items?k=100")["items"]
    scores = dict(
        zip(items["item_id"], matrix(items) @ np.asarray(mine["embedding"], np.float16).astype("f4"), strict=True)
    )
    wanted = sorted(set(scores) - bought, key=lambda name: (-round(scores[name], 6), name))[:100]
    assert [each["item_id"] for each in found] == wanted
    nearest = sorted(scores, key=lambda name: -scores[name])[:100]
    assert bought & set(nearest), "something is left out, so that this test can fail"
    named = dict(items.select("item_id", "title").iter_rows())
    disliked = {tag["tag"] for tag in mine["tags"] if tag["stance"] == "disliked"}
    dealt = {each["item_id"] for each in mine["last_items"]}
    for each in found:
        carried = {tag["tag"] for tag in each["tags"]}
        assert set(each["because"]["tags"]) <= carried - disliked
        assert each["because"]["like"]["item_id"] in dealt - {each["item_id"]}
        assert each["because"]["like"]["title"] == named[each["because"]["like"]["item_id"]]
    assert any(each["because"]["tags"] for each in found)


def test_items_like_an_item_do_not_include_itself(server: Any, items: pl.DataFrame) -> None:
    vectors = matrix(items)
    for at in range(0, items.height, max(1, items.height // 5)):
        name = items["item_id"][at]
        found = server.get(f"/v1/items/{quote(name)}/similar?k=4")
        assert found["item"]["item_id"] == name
        scores = dict(zip(items["item_id"], vectors @ vectors[at], strict=True))
        best = sorted(set(scores) - {name}, key=lambda other: (-round(scores[other], 6), other))[:4]
        assert [each["item_id"] for each in found["items"]] == best
        assert "similarity" not in found["item"]


def test_who_was_looked_at_is_in_the_audit_log(server: Any, user: str) -> None:
    found = server.get(f"/v1/users/{quote(user)}/similar?k=3")["users"]
    told = [json.loads(line) for line in (server.folder / "audit.jsonl").read_text().splitlines()][-2:]
    assert [each["route"] for each in told] == ["similar", "similar:found"]
    assert told[0]["users"] == [pseudonym(user, server.config.privacy.key())]
    assert told[1]["users"] == [each["user_id"] for each in found]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/users/nobody/similar", 404),
        ("/v1/users/nobody/items", 404),
        ("/v1/items/nothing/similar", 404),
        ("/v1/items/%00/similar", 404),
        ("/v1/users/a%00b/similar", 422),
        ("/v1/users/u/similar?k=0", 422),
        ("/v1/users/u/items?k=101", 422),
        ("/v1/items/x/similar?k=many", 422),
        ("/v1/items/" + "x" * 1_001 + "/similar", 422),
    ],
)
def test_what_cannot_be_answered_is_refused(server: Any, path: str, status: int) -> None:
    found, headers, body = server.ask("GET", path)
    assert (found, headers["content-type"]) == (status, "application/problem+json"), body
    assert server.ask("GET", path, token=None)[0] == 401
    assert server.ask("GET", path, token=server.other)[0] in (403, 422), "a token of another scope opens nothing"


def test_a_user_without_a_vector_is_like_nobody(server: Any) -> None:
    index = server.service.index
    zero = np.zeros(index.manifest.width, np.float32)
    document = {"user_id": "x", "tags": [], "bought": [], "last_items": []}
    assert nearby.users_like(index, document, zero, 5) == []
    assert index.items is not None
    assert nearby.items_for(index.items, document, zero, 5) == []
    assert nearby.items_like(index.items, "no such item", 5) == []

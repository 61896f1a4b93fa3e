"""Who and what is near: users like a user, items like an item, items for a user, each with the reason.

This is plain retrieval by today's vectors. What answers `items_for` can be replaced by a trained recommender.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_profile.sources.redact import bucket_of_one
from ray_profile.store.index import Index
from ray_profile.store.shelf import Shelf, nearest

MAX_NEAREST = 100
SHARED = 5  # tags that an answer names as the reason

Vector = npt.NDArray[np.float32]


def users_like(index: Index, document: Mapping[str, Any], vector: Vector, count: int) -> list[dict[str, Any]]:
    """The users nearest to a user with this document and vector (D,): {user_id, similarity, tags}, the nearest first.
    `tags` are those that both have, in the order of the user's own."""
    found = []
    for user, similarity in index.nearest_users(vector, count + 1) if vector.any() else ():
        if user == document["user_id"]:
            continue
        other = index.get(bucket_of_one(user, index.manifest.buckets), user)
        assert other is not None, "who has a vector has a document"
        shared = _shared(document["tags"], json.loads(other)["tags"])
        found.append({"user_id": user, "similarity": similarity, "tags": shared})
    return found[:count]


def items_like(items: Shelf, item: str, count: int) -> list[dict[str, Any]]:
    """The items whose titles' vectors are nearest to an item's: what is known of each, and its `similarity`."""
    vector = items.vector(item)
    if vector is None or not vector.any():
        return []
    return [_told(items, name, near) for name, near in nearest([items], vector, count + 1) if name != item][:count]


def items_for(items: Shelf, document: Mapping[str, Any], vector: Vector, count: int) -> list[dict[str, Any]]:
    """The items nearest to a user's vector (D,) that they have not bought yet, each with `because`: the tags of the
    user that it carries, and the item among those they dealt with last that it is most like."""
    if not vector.any():
        return []
    bought = {each["item_id"] for each in document["bought"]}
    found = [each for each in nearest([items], vector, count + len(bought)) if each[0] not in bought][:count]
    liked = [tag for tag in document["tags"] if tag["stance"] != "disliked"]
    dealt = {each["item_id"]: items.vector(each["item_id"]) for each in document["last_items"]}
    known = {name: own for name, own in dealt.items() if own is not None and own.any()}
    answers = []
    for name, near in found:
        told = _told(items, name, near)
        like = _most_like(items, name, known)
        answers.append({**told, "because": {"tags": _shared(liked, told["tags"]), "like": like}})
    return answers


def _told(items: Shelf, name: str, near: float) -> dict[str, Any]:
    found = items.get(name)
    assert found is not None, "what has a vector has a document"
    return {**json.loads(found), "similarity": near}


def _most_like(items: Shelf, name: str, known: Mapping[str, Vector]) -> dict[str, Any] | None:
    """Which of some items, other than itself, an item is most like."""
    vector = items.vector(name)
    assert vector is not None
    others = {other: float(vector @ own) for other, own in known.items() if other != name}
    if not others:
        return None
    best = max(others, key=lambda other: (others[other], other))
    return {"item_id": best, "title": json.loads(items.get(best) or b"{}").get("title")}


def _shared(tags: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[str]:
    names = {other["tag"] for other in others}
    return [tag["tag"] for tag in tags if tag["tag"] in names][:SHARED]

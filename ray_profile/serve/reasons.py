"""Why a profile says what it says: the evidence of one attribute, out of the document that holds all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_profile.profile.document import EVIDENCE, REASONS
from ray_profile.serve.problems import Problem, quoted

#: Attribute -> the key that names an entry of its list. `sentiment` is one thing, and no list.
NAMED = {
    "tags": "tag",
    "entities": "entity",
    "languages": "language",
    "categories": "category",
    "brands": "brand",
    "places": "place",
    "devices": "device",
    "searches": "query",
}
ATTRIBUTES = ("sentiment", *NAMED)
assert set(ATTRIBUTES) == set(REASONS), set(ATTRIBUTES) ^ set(REASONS)


def why(document: Mapping[str, Any], attribute: str, value: str | None) -> dict[str, Any]:
    """{attribute, value, entry, evidence}: the ids that made an attribute, with weights, times and redacted snippets.

    `value` names the entry of a list (a tag's name); without one, `evidence` is by the names of all entries. Raises
    `Problem` 422 for an attribute that carries no evidence, 404 for an entry that the profile does not have.
    """
    if attribute not in ATTRIBUTES:
        raise Problem(422, f"attribute={quoted(attribute)} carries no evidence; there are {', '.join(ATTRIBUTES)}")
    if attribute not in NAMED:
        entry: Mapping[str, Any] = document[attribute] or {}
        return _told(attribute, None, _bare(entry), entry.get(EVIDENCE) or [])
    key = NAMED[attribute]
    entries: Sequence[Mapping[str, Any]] = document[attribute] or []
    if value is None:
        return _told(attribute, None, None, {entry[key]: entry[EVIDENCE] for entry in entries})
    for entry in entries:
        if entry[key] == value:
            return _told(attribute, value, _bare(entry), entry[EVIDENCE])
    named = ", ".join(str(entry[key]) for entry in entries[:5])
    raise Problem(404, f"the profile has no {key} {quoted(value)}; it has {named or 'none'}")


def _told(attribute: str, value: str | None, entry: Any, evidence: Any) -> dict[str, Any]:
    return {"attribute": attribute, "value": value, "entry": entry, "evidence": evidence}


def _bare(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != EVIDENCE}

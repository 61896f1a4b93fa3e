"""What the answers look like, for OpenAPI: schemas made from the profiles' own columns, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from ray_profile.profile.document import EVIDENCE, FIELDS
from ray_profile.profile.fuse import PROFILE_DTYPES
from ray_profile.serve.problems import MEDIA_TYPE
from ray_profile.serve.service import MAX_ID_CHARS

#: What an id of a user may be: anything without NUL.
ID: dict[str, Any] = {"type": "string", "maxLength": MAX_ID_CHARS, "pattern": r"^[^\u0000]*$"}


def schema_of(dtype: pl.DataType) -> dict[str, Any]:
    """The JSON schema of a column's values, without the evidence; every one may be null but a list."""
    if isinstance(dtype, pl.List):
        return {"type": "array", "items": schema_of(dtype.inner)}  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        named = {field.name: field.dtype for field in dtype.fields if field.name != EVIDENCE}
        return {"type": ["object", "null"], "properties": {name: schema_of(each) for name, each in named.items()}}  # type: ignore[arg-type]
    if isinstance(dtype, pl.Datetime):
        return {"type": ["string", "null"], "format": "date-time"}
    if dtype.is_integer():
        return {"type": ["integer", "null"]}
    if dtype.is_float():
        return {"type": ["number", "null"]}
    return {"type": ["boolean" if dtype == pl.Boolean else "string", "null"]}


PROFILE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {name: schema_of(PROFILE_DTYPES[name]) for name in FIELDS},
    "required": list(FIELDS),
}
_PROBLEM_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail"],
}


def _problem(what: str) -> dict[str, Any]:
    return {"description": what, "content": {MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA}}}


Responses = dict[int | str, dict[str, Any]]

#: What a route that reads a body may say of it.
_BODY: Responses = {
    400: _problem("The body is no JSON, or says something twice."),
    415: _problem("The body is declared as something else than JSON."),
}
_NO_ENCODER: Responses = {501: _problem("This endpoint has no encoder.")}
_QUESTION: Responses = {408: _problem("The question takes too long; narrow it down.")}
_NOBODY: Responses = {404: _problem("There is no such profile, or no such entry in it.")}


def _answers(what: str, schema: Mapping[str, Any], example: Any = None) -> Responses:
    """An answer of 200, and the refusals that every route has."""
    content: dict[str, Any] = {"schema": dict(schema)}
    if example is not None:
        content["example"] = example
    return {
        200: {"description": what, "content": {"application/json": content}},
        401: _problem("No token, or none that is valid."),
        403: _problem("The token lacks the scope."),
        413: _problem("The body, or what was asked for, is too long."),
        422: _problem("A parameter or the body is not what the route takes."),
        429: _problem("Too many requests; Retry-After says when to come again."),
        503: _problem("No answer in time, or the profiles cannot be read now; ask again."),
    }


PROFILE = {
    **_answers("The profile.", {**PROFILE_SCHEMA, "required": ["user_id", "as_of"]}),
    **_NOBODY,
    304: {"description": "The version that If-None-Match names is the newest."},
}
BATCH = _BODY | _answers(
    "The profiles.",
    {
        "type": "object",
        "properties": {
            "version": {"type": "integer"},
            "missing": {"type": "array", "items": {"type": "string"}},
            "profiles": {"type": "array", "items": {"anyOf": [PROFILE_SCHEMA, {"type": "null"}]}},
        },
        "required": ["version", "missing", "profiles"],
    },
)
WHY = _NOBODY | _answers(
    "The evidence.",
    {"type": "object", "properties": {"version": {"type": "integer"}, "attribute": {"type": "string"}}},
    {
        "version": 12,
        "attribute": "tags",
        "value": "green tea",
        "entry": {"tag": "green tea", "share": 0.21, "support": 7, "of": 30, "stance": "liked", "source": "catalogue"},
        "evidence": [
            {
                "id": "r-881",
                "kind": "review",
                "weight": 1.0,
                "ts": "2025-11-03T09:12:00+00:00",
                "item_id": "tea-17",
                "snippet": "茶香很浓，回购三次了",
            }
        ],
    },
)
EMBED = (
    _BODY
    | _NO_ENCODER
    | _answers(
        "What the encoder makes of each text, in order; null for a text with nothing to read.",
        {
            "type": "object",
            "properties": {
                "texts": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "vector": {"type": ["array", "null"], "items": {"type": "number"}},
                            "sentiment": {"type": ["object", "null"]},
                            "tags": {"type": ["array", "null"], "items": {"type": "object"}},
                        },
                    },
                }
            },
            "required": ["texts"],
        },
    )
)
COMPUTE = (
    _BODY
    | _NO_ENCODER
    | _answers(
        "The profile, and what it rests on.",
        {
            "type": "object",
            "properties": {"profile": PROFILE_SCHEMA, "why": {"type": "object"}},
            "required": ["profile", "why"],
        },
    )
)
COUNT = (
    _BODY
    | _QUESTION
    | _answers(
        "How many users match, and the pseudonyms of some.",
        {
            "type": "object",
            "properties": {
                "version": {"type": "integer"},
                "count": {"type": "integer"},
                "sample": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["version", "count", "sample"],
        },
    )
)
EXPORT: Responses = {
    **_BODY,
    **_QUESTION,
    **_answers("The users.", {}),
    200: {
        "description": "The users.",
        "content": {"text/csv": {"schema": {"type": "string"}}, "application/vnd.apache.parquet": {}},
    },
}
ME = _answers(
    "Whose token this is.",
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "scopes": {"type": "array", "items": {"type": "string"}}},
        "required": ["name", "scopes"],
    },
)

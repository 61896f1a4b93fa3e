"""What requests carry: the parameters of paths and queries, and the bodies."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

from ray_profile.schema import MAX_TEXT_CHARS
from ray_profile.serve import contract
from ray_profile.serve.embedding import MAX_TEXTS
from ray_profile.serve.nearby import MAX_NEAREST
from ray_profile.serve.segments import COLUMNS
from ray_profile.serve.service import MAX_USERS

MAX_ROWS = 5_000  # of one request

User = Annotated[
    str,
    Path(
        description="The user's own id, as the shop's files write it.",
        examples=["u-1001"],
        json_schema_extra=contract.ID,
    ),
]
Item = Annotated[
    str,
    Path(
        description="The item's id, as the shop's files write it.", examples=["tea-17"], json_schema_extra=contract.ID
    ),
]
Nearest = Annotated[int, Query(ge=1, le=MAX_NEAREST, description="How many.")]
ByPseudonym = Annotated[bool, Query(description="Whether the id is a pseudonym, as answers give them.")]


class Users(BaseModel):
    """The body of `profiles:batch`."""

    model_config = ConfigDict(extra="forbid")

    users: list[str] = Field(
        max_length=MAX_USERS, examples=[["u-1001", "u-1002"]], json_schema_extra={"items": contract.ID}
    )


class Texts(BaseModel):
    """The body of `embed`."""

    model_config = ConfigDict(extra="forbid")

    texts: list[str] = Field(
        max_length=MAX_TEXTS,
        examples=[["茶香很浓，回购三次了", "The lid leaks."]],
        json_schema_extra={"items": {"type": "string", "maxLength": MAX_TEXT_CHARS}},
    )


class Row(BaseModel):
    """A review or an event of the person whose profile is wanted."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    kind: Literal["review", "search", "view", "favourite", "cart", "purchase", "return"]
    ts: str = Field(description="ISO 8601; without a zone it is UTC.", examples=["2025-11-03T09:12:00"])
    id: str | None = None
    item_id: str | None = None
    title: str | None = None
    text: str | None = None
    rating: float | None = Field(default=None, ge=1, le=5)
    quantity: float | None = None
    price: float | None = None
    order_id: str | None = None
    place: str | None = None
    device: str | None = None


class Rows(BaseModel):
    """The body of `profiles:compute`."""

    model_config = ConfigDict(extra="forbid")

    rows: list[Row] = Field(
        max_length=MAX_ROWS,
        examples=[[{"kind": "review", "ts": "2025-11-03T09:12:00", "rating": 5, "text": "茶香很浓，回购三次了"}]],
    )


class Segment(BaseModel):
    """The body of `segments:count`."""

    model_config = ConfigDict(extra="forbid")

    predicate: str = Field(
        description=f"An SQL expression on {', '.join(COLUMNS)}",
        examples=["recency_days < 30 AND array_contains(liked, 'green tea') AND sentiment_positive > 0.6"],
    )


class Export(Segment):
    """The body of `segments:export`."""

    columns: list[str] = Field(
        default=[],
        examples=[["monetary", "liked"]],
        json_schema_extra={"items": {"type": "string", "enum": list(COLUMNS)}},
    )
    format: Literal["csv", "parquet"] = "csv"

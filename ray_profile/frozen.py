"""What every section of the configuration is: immutable, and closed to keys it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A section of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

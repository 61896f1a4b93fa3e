"""`[serve]` and its parts."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag, field_validator

from ray_profile.frozen import Frozen


class Jwt(Frozen):
    """`[serve.jwt]`: tokens that an outside issuer signs."""

    jwks: str  # its public keys: a file, or an https:// address
    issuer: str = Field(min_length=1)  # what `iss` must be, letter for letter
    audience: str = Field(min_length=1)  # what `aud` must be or hold
    scope_claim: str = "scope"  # words with spaces between, or a list; "realm_access.roles" looks inside a claim
    name_claim: str = "sub"  # who asks, as the audit log says it
    scopes: dict[str, str | list[str]] = Field(default_factory=dict)  # the issuer's word -> ours; absent: ours
    rate: float | None = Field(default=None, gt=0)  # requests a second of one subject at one replica
    leeway_seconds: float = Field(default=30.0, ge=0, le=300)  # that clocks may differ
    refresh_seconds: float = Field(default=300.0, ge=10)  # between looks for the issuer's newest keys
    keep_seconds: float = Field(default=3600.0, gt=0)  # that keys are good for while no newer ones can be read

    @field_validator("keep_seconds")
    @classmethod
    def _lasts_until_the_next_look(cls, value: float, info: Any) -> float:
        if value < info.data.get("refresh_seconds", 0):
            raise ValueError(
                f"keys would end before the next look at refresh_seconds = {info.data['refresh_seconds']:g}"
            )
        return value

    @field_validator("jwks")
    @classmethod
    def _is_a_file_or_cannot_be_overheard(cls, value: str) -> str:
        scheme, separator, _ = value.partition("://")
        if not separator or scheme == "https":
            return value
        if scheme == "http" and is_loopback(urlsplit(value).hostname or ""):
            return value
        raise ValueError("keys are read from a file or over https://; http:// is for this machine's own addresses")


class Span(Frozen):
    """So many replicas at least and at most, as the load wants them."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)

    @field_validator("max")
    @classmethod
    def _is_no_less_than_min(cls, value: int, info: Any) -> int:
        if value < info.data.get("min", 1):
            raise ValueError(f"it is below min = {info.data['min']}")
        return value


#: What pydantic puts into the place of an error for the two forms of `Replicas`.
FORMS = ("a number", "a range")
Replicas = Annotated[
    Annotated[int, Field(ge=0), Tag(FORMS[0])] | Annotated[Span, Tag(FORMS[1])],
    Discriminator(lambda value: FORMS[isinstance(value, Mapping | Span)]),
]


class Serve(Frozen):
    """`[serve]`: the endpoint."""

    host: str = "127.0.0.1"  # another one needs tokens
    port: int = Field(default=8000, ge=1, le=65535)
    tokens: str | None = None  # a file that `ray-profile token new` makes
    jwt: Jwt | None = None  # tokens of an outside issuer; with neither, anybody on this machine may ask
    proxy: Literal["haproxy", "python"] | None = None  # absent: HAProxy where callers show tokens, without TLS
    tls_certificate: str | None = None  # PEM, with those between it and its authority; absent: no TLS
    tls_key: str | None = None  # its private key, in PEM
    audit: str = "audit.jsonl"  # who looked at whom, appended
    cache: str = "~/.cache/ray_profile/index"  # where copies of an index on S3 lie
    replicas: Replicas = 1  # of the look-ups: a number, or { min = 1, max = 4 } as the load wants them
    encoders: Replicas = 1  # the same of the encoder, for /v1/embed; 0: none is loaded
    refresh_seconds: float = Field(default=5.0, gt=0)  # between looks for a newer index

    @field_validator("replicas")
    @classmethod
    def _somebody_answers(cls, value: int | Span) -> int | Span:
        if value == 0:
            raise ValueError("nobody would answer; 1 is the least")
        return value

    @property
    def asks_who(self) -> bool:
        """Whether callers have to show a token."""
        return self.tokens is not None or self.jwt is not None


def least(replicas: int | Span) -> int:
    """How many there always are."""
    return replicas if isinstance(replicas, int) else replicas.min


def most(replicas: int | Span) -> int:
    """How many there can be."""
    return replicas if isinstance(replicas, int) else replicas.max


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host, by its name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""Tokens of an outside issuer: JWTs (RFC 7519) that it signs with a private key, read as RFC 8725 advises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import jwt

from ray_profile.errors import ConfigError
from ray_profile.serve.access import NAMED, PREFIX, SCOPES, Caller
from ray_profile.serve.jwks import ALGORITHMS, KeySet, fetch_of
from ray_profile.serve_config import Jwt

MAX_NAME = 500  # bytes of a caller's name; two that begin alike are not cut to one
MAX_CHARS = 8_192  # of a token; what is longer is not looked at
REMEMBERED = 1_024  # tokens that were read and checked: that takes longer than a look-up
_UNREADABLE = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)  # strangers write these


class Outside:
    """See `access.Issuer`. A token is good where its key, issuer, audience and times are; its scopes are the issuer's
    words for ours."""

    def __init__(self, settings: Jwt, keys: KeySet) -> None:
        self._settings, self.keys = settings, keys
        self._scopes = _ours(settings.scopes)
        self._checked = lru_cache(maxsize=REMEMBERED)(self._check)

    @classmethod
    def of(cls, settings: Jwt) -> Outside:
        """That of a configuration. Raises `ConfigError` for a scope that is none of ours, or a file that is no JWKS."""
        return cls(settings, KeySet(fetch_of(settings.jwks), settings.refresh_seconds, settings.keep_seconds))

    def caller(self, token: str) -> Caller | None:
        """See `access.Issuer`. It reads nothing: a key that is not known opens nothing, until `learn` has looked."""
        name = _key_id(token)
        key = None if name is None else self.keys.key(name)
        if key is None:
            return None
        try:
            return self._checked(token, key)  # of a key that was read anew nothing is remembered
        except _UNREADABLE:
            return None

    async def learn(self, token: str) -> bool:
        """See `access.Issuer`: a token that names a key which is not known is reason to look for it."""
        name = _key_id(token)
        return name is not None and self.keys.key(name) is None and await self.keys.learn(name)

    def _check(self, token: str, key: jwt.PyJWK) -> Caller:
        """What a signature vouches for. It is remembered, and stays true: a token that has begun goes on until it
        expires, which is looked at every time. What is refused is raised, so that it is not."""
        settings = self._settings
        claims = jwt.decode(
            token,
            key,
            algorithms=ALGORITHMS,
            audience=settings.audience,
            issuer=settings.issuer,
            leeway=settings.leeway_seconds,
            options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
        )
        name = _claim(claims, settings.name_claim)
        if not isinstance(name, str) or not name.strip() or len(name.encode()) > MAX_NAME:
            raise jwt.InvalidTokenError(f"{settings.name_claim} names nobody")
        expires = float(claims["exp"]) + settings.leeway_seconds
        return Caller(f"{NAMED}{name}", self._opened(claims), settings.rate, expires)

    def _opened(self, claims: Mapping[str, Any]) -> frozenset[str]:
        said = _claim(claims, self._settings.scope_claim)
        words = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        return frozenset(ours for word in words if isinstance(word, str) for ours in self._scopes.get(word, ()))


def _ours(named: Mapping[str, str | list[str]]) -> dict[str, tuple[str, ...]]:
    """The issuer's word -> scopes of ours. Without a map its words are ours, all but `admin`: there it may mean
    something else, so that has to be said."""
    if not named:
        return {scope: (scope,) for scope in SCOPES if scope != "admin"}
    found = {word: (scopes,) if isinstance(scopes, str) else tuple(scopes) for word, scopes in named.items()}
    for word, scopes in found.items():
        _insist_on_scopes(word, scopes)
    return found


def _insist_on_scopes(word: str, scopes: Iterable[str]) -> None:
    for scope in scopes:
        if scope not in SCOPES:
            raise ConfigError(f"serve.jwt.scopes.{word} names {scope!r}, which is no scope; use {', '.join(SCOPES)}")


@lru_cache(maxsize=REMEMBERED)
def _key_id(token: str) -> str | None:
    """The `kid` that a token names; None for what is no JWT. Nothing of it is trusted yet."""
    if token.startswith(PREFIX) or token.count(".") != 2 or len(token) > MAX_CHARS:
        return None
    try:
        name = jwt.get_unverified_header(token).get("kid")
    except _UNREADABLE:
        return None
    return name if isinstance(name, str) else None


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim of this name, else of this path: issuers write both `https://shop/roles` and `realm_access.roles`."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found

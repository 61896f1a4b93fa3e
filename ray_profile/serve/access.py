"""Who may ask for what: bearer tokens of our own, kept as hashes.

A token is 32 random bytes, so its plain SHA-256 is as good at rest as a slow hash: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from ray_profile.errors import ConfigError
from ray_profile.serve.problems import Problem

SCOPES = ("profiles:read", "why:read", "segments:read", "segments:export", "embed", "metrics:read", "admin")
PREFIX = "rp_"
NAMED = "jwt:"  # what the names of an outside issuer's callers begin with, and ours do not
log = logging.getLogger("ray_profile.serve")


@dataclass(frozen=True)
class Caller:
    """Who asks, what they may, and how many requests a second (None: no limit of their own)."""

    name: str
    scopes: frozenset[str]
    rate: float | None = None
    expires: float = float("inf")  # Unix seconds

    def insist(self, scope: str) -> None:
        """Raise `Problem` 403 where this caller lacks a scope; `admin` has all."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise Problem(403, f"the token of {self.name!r} lacks the scope {scope}; ask for one that has it")


#: Whom the loopback interface serves where no tokens are configured.
ANYBODY = Caller("anybody", frozenset(SCOPES))


class Issuer(Protocol):
    """Who knows tokens: `TokenFile` ours, `outside.Outside` those of another issuer."""

    def caller(self, token: str) -> Caller | None:
        """Whose token this is, or None. It answers at once."""
        ...

    async def learn(self, token: str) -> bool:
        """Look for what is missing to know a token; whether it may be known now."""
        ...


@dataclass(frozen=True)
class Kept:
    """A token at rest."""

    name: str
    sha256: str
    scopes: tuple[str, ...]
    rate: float | None
    created: str
    expires: str | None

    def caller(self) -> Caller:
        """Who has it."""
        if self.rate is not None and not (isinstance(self.rate, int | float) and self.rate > 0):
            raise ValueError(f"rate = {self.rate!r} is no number above 0")
        expires = float("inf") if self.expires is None else datetime.fromisoformat(self.expires).timestamp()
        return Caller(self.name, frozenset(self.scopes), self.rate, expires)


class TokenFile:
    """Our own tokens: a file of one JSON object a line, read anew when it changes, so that a token that is taken out of
    it opens nothing a second later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._callers: dict[str, Caller] = {}
        try:
            self._read()
        except OSError as error:
            raise ConfigError(
                f"serve.tokens {str(path)!r} cannot be read ({error.strerror}); `ray-profile token new` makes it"
            ) from error

    def caller(self, token: str) -> Caller | None:
        """See `Issuer`. The hash is looked up, so the time says nothing of how near a guess was.

        While somebody edits the file and it cannot be read, those who had a token before have it still.
        """
        try:
            self._read()
        except (OSError, ConfigError) as error:
            log.error("serve.tokens: %s; the tokens before it are good until it is mended", error)
        return self._callers.get(hashed(token))

    async def learn(self, token: str) -> bool:  # noqa: ARG002
        """See `Issuer`. The file was read at the look before."""
        return False

    def _read(self) -> None:
        found = self._path.stat()
        stamp = found.st_mtime_ns, found.st_size
        if stamp != self._stamp:
            self._stamp = stamp  # what is broken is read once, not at every request
            self._callers = {each.sha256: each.caller() for each in kept(self._path)}


def authenticated(issuers: Iterable[Issuer], header: str | None, now: float) -> Caller:
    """The caller of an `Authorization` header. Raises `Problem` 401, the same for a token that is missing, unknown or
    expired."""
    token = _token(header)
    if token:
        for issuer in issuers:
            caller = issuer.caller(token)
            if caller is not None and caller.expires > now:
                return caller
    raise Problem(401, "send `Authorization: Bearer TOKEN` with a token that is valid", {"WWW-Authenticate": "Bearer"})


async def learnt(issuers: Iterable[Issuer], header: str | None) -> bool:
    """Whether an issuer has learnt something, so that `authenticated` may now know whom it refused."""
    token = _token(header)
    return bool(token) and any([await issuer.learn(token) for issuer in issuers])


def _token(header: str | None) -> str:
    """The token of an `Authorization` header; empty for one of another kind."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def hashed(token: str) -> str:
    """A token as it is kept."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def made(
    path: Path, name: str, scopes: Iterable[str], rate: float | None, expires: datetime | None, now: datetime
) -> str:
    """Add a token to a file, which is made where there is none, and give the token: it is kept nowhere.

    Raises `ConfigError` for a scope that does not exist, a name that is taken, or a file that cannot be written.
    """
    wanted = tuple(dict.fromkeys(scopes))
    for scope in wanted:
        if scope not in SCOPES:
            raise ConfigError(f"{scope!r} is no scope; there are {', '.join(SCOPES)}")
    if not wanted:
        raise ConfigError(f"no scope is named; use --scope with some of {', '.join(SCOPES)}")
    if name.startswith(NAMED):
        raise ConfigError(f"--name {name!r} begins with {NAMED!r}, as only the callers of serve.jwt do; choose another")
    if path.exists() and any(each.name == name for each in kept(path)):
        raise ConfigError(f"{path} has a token {name!r} already; choose another --name, or take its line out")
    token = PREFIX + secrets.token_urlsafe(32)
    until = None if expires is None else expires.isoformat()
    line = json.dumps(asdict(Kept(name, hashed(token), wanted, rate, now.isoformat(), until)), ensure_ascii=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            line = f"\n{line}"  # some editors leave the last line without an end
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:  # noqa: PTH123
            file.write(line + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); name another file as serve.tokens") from error
    return token


def kept(path: Path) -> list[Kept]:
    """The tokens of a file. Raises `ConfigError` for a line that is none, `OSError` where it cannot be read."""
    found = []
    for at, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            said: Mapping[str, Any] = json.loads(line)
            each = Kept(**{**said, "scopes": tuple(said["scopes"])})
            each.caller()
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}:{at} is no token ({error}); take the line out") from error
        found.append(each)
    return found


def now_utc() -> datetime:
    """The clock that tokens are made by."""
    return datetime.now(UTC)

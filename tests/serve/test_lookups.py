"""The hot path answers as the route does: the same status, headers and bytes, the same refusals, notes and rates."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_profile.serve import access, app, limits
from ray_profile.serve.asgi import Application
from ray_profile.serve.audit import Audit
from ray_profile.serve.lookups import CALLER, straight
from ray_profile.serve.service import Service, etag


@dataclass
class Asked:
    """The application of a service of its own, and the log that it writes."""

    application: Application
    service: Service
    log: Path

    def __call__(self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> Any:
        """Every message of an answer, and what was noted of it."""
        sent: list[Any] = []
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": quote(path, errors="surrogatepass").encode(), "query_string": query,
            "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        seen = self.log.stat().st_size
        asyncio.run(self.application(scope, receive, send))
        with self.log.open("rb") as log:
            log.seek(seen)
            noted = [{**json.loads(line), "at": None} for line in log]
        return [{"more_body": False, **each} if "body" in each else each for each in sent], noted


@pytest.fixture(scope="module")
def tokens(server: Any) -> dict[str, str | None]:
    """By what they are: none, one of each kind, and one whose owner may ask once and then not for an hour."""
    file, now = server.folder / "tokens", access.now_utc()
    scopes = ("profiles:read",)
    return {
        "none": None,
        "wrong": "rp_wrong",
        "good": server.token,
        "of another scope": server.other,
        "of a master": access.made(file, "master", ("admin",), None, None, now),
        "expired": access.made(file, "late", scopes, None, now - timedelta(days=1), now),
        "rare": access.made(file, "rare", scopes, 1 / 3600, None, now),
    }


@pytest.fixture(scope="module")
def both(server: Any) -> Iterator[tuple[Asked, Asked]]:
    """The application as it is, and without the hot path; the clock of the rates stands."""

    def asked(name: str) -> Asked:
        log = server.folder / f"{name}.jsonl"
        service = replace(server.service, audit=Audit(log), rates=limits.Rates())
        return Asked(app.create(service), service, log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "monotonic", lambda: 99.0)
        ours = asked("straight")
        patch.setattr(app, "straight", lambda application, _: application)
        yield ours, asked("routed")


ODD = ["", "/", "why", "a/why", "/why", "a/b c?#", "a\nb", "a\n", "a\0", "a" * 1_001, "\ud800", "\x85", " x ", "书"]
QUERIES = [
    b"",
    b"",
    b"",
    b"fields=tags",
    b"fields=",
    b"pseudonym=true",
    b"pseudonym=no",
    b"x=1",
    b"&",
    b"%ff",
    b"fields=x",
]


def mostly(usual: Any, *others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is usual in three of four cases, so that one thing at a time is odd."""
    return st.integers(0, 3).flatmap(lambda at: st.one_of(*others) if at == 3 else st.just(usual))


@settings(max_examples=1_000, deadline=None)
@given(data=st.data())
def test_it_answers_what_the_route_answers(
    both: tuple[Asked, Asked], tokens: dict[str, str | None], user: str, data: st.DataObject
) -> None:
    ours, routed = both
    method = data.draw(mostly("GET", st.sampled_from(["HEAD", "POST", "get"])))
    who = data.draw(st.one_of(st.just(user), st.sampled_from([*ODD, f"{user}\n", f" {user}"]), st.text(max_size=30)))
    prefix = data.draw(mostly("/v1/profiles/", st.sampled_from(["/v1/profiles", "/v1//profiles/", "/V1/profiles/"])))
    query = data.draw(mostly(b"", st.sampled_from(QUERIES), st.binary(max_size=12)))
    tag = etag(ours.service.index).encode()
    tags = st.sampled_from([tag, b'"x", ' + tag, b" " + tag + b" ,", b"W/" + tag, b"*", b"", b'"x"', b"\xff"])
    headers = [(b"host", b"x"), *((b"if-none-match", each) for each in data.draw(st.lists(tags, max_size=2)))]
    token = tokens[data.draw(mostly("good", st.sampled_from(sorted(tokens))))]
    if token is not None:
        scheme = data.draw(mostly(b"Bearer ", st.sampled_from([b"bearer ", b"Basic ", b""])))
        headers.append((b"authorization", scheme + token.encode()))
    asked = method, prefix + who, query, headers
    assert ours(*asked) == routed(*asked)


def test_a_profile_is_found_without_the_framework(server: Any, user: str) -> None:
    async def framework(scope: Any, *_: Any) -> None:
        raise LookupError(scope["path"])

    hot = straight(framework, server.service)

    async def admitted(scope: Any, receive: Any, send: Any) -> None:
        await hot({**scope, CALLER: access.ANYBODY}, receive, send)

    alone = Asked(admitted, server.service, server.folder / "audit.jsonl")
    messages, _ = alone("GET", f"/v1/profiles/{user}", b"", [])
    assert [messages[0]["status"], json.loads(messages[1]["body"])["rows"] > 0] == [200, True]
    for path, query in ((f"/v1/profiles/{user}/why", b""), (f"/v1/profiles/{user}", b"fields=tags"), ("/v1/me", b"")):
        with pytest.raises(LookupError, match=path):
            alone("GET", path, query, [])


def test_a_server_that_starts_and_ends_is_no_request(server: Any) -> None:
    told = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Any:
        return told.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    asyncio.run(app.create(server.service)({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_fault_is_told_alike_and_logged_without_an_id(
    both: tuple[Asked, Asked], tokens: dict[str, str | None], user: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        version = 1

        def __getattr__(self, _: str) -> Any:
            raise OSError("the disk is gone")

    headers = [(b"authorization", f"Bearer {tokens['good']}".encode())]
    told = []
    for each in both:
        whole, each.service.index = each.service.index, Broken()  # type: ignore[assignment]
        caplog.clear()
        try:
            told.append(each("GET", f"/v1/profiles/{user}", b"", headers))
        finally:
            each.service.index = whole
        assert "GET /v1/profiles/{user:path}" in caplog.text
        assert user not in caplog.text
    assert told[0] == told[1]
    assert told[0][0][0]["status"] == 500
    assert b"disk" not in told[0][0][1]["body"]

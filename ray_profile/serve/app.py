"""The HTTP interface, version 1: an ASGI application that is the same under Ray Serve and under any ASGI server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from ray_profile.profile.document import FIELDS
from ray_profile.schema import MAX_TEXT_CHARS
from ray_profile.serve import contract
from ray_profile.serve.access import Caller
from ray_profile.serve.asgi import Application, Receive, Scope, Send
from ray_profile.serve.bodies import JsonRoute
from ray_profile.serve.lookups import CALLER, ROUTE, is_named, straight
from ray_profile.serve.measures import Measures
from ray_profile.serve.problems import MEDIA_TYPE, Problem, fault, insist_on_text, quoted
from ray_profile.serve.reasons import ATTRIBUTES, why
from ray_profile.serve.requests import ByPseudonym, Export, Item, Nearest, Rows, Segment, Texts, User, Users
from ray_profile.serve.service import Service, etag, fields

MAX_BODY = 4 << 20  # bytes
MAX_ANSWER = 32 << 20  # bytes of many profiles
NEAR_OF_ONE = 10  # of what is near, those that cost as much as one look-up
TIMEOUT_SECONDS = 30.0
OPENAPI = "/v1/openapi.json"
METRICS = "/metrics"
JSON = "application/json"

_BEARER = HTTPBearer(auto_error=False, description="A token of `ray-profile token new`.")


async def _asker(request: Request, _: Annotated[Any, Security(_BEARER)]) -> Caller:
    """Who asks, as `_guarded` has found out; the scheme is there for the description."""
    caller: Caller = request.scope[CALLER]
    return caller


Asker = Annotated[Caller, Security(_asker)]


def create(service: Service) -> Application:
    """The application that answers from a service."""
    app = FastAPI(
        title="ray_profile",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=OPENAPI,
        redirect_slashes=False,
    )
    app.router.route_class = JsonRoute
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    _profiles(app, service)
    _nearby(app, service)
    measures = Measures(service)
    _texts(app, service, measures)
    _computed(app, service)
    _segments(app, service)
    _health(app, service)
    _metrics(app, service, measures)
    _page(app)
    return measures.of(_guarded(straight(app, service), service))


def _profiles(app: FastAPI, service: Service) -> None:
    @app.get("/v1/profiles/{user:path}/why", responses=contract.WHY)
    async def reasons(
        caller: Asker,
        user: User,
        tag: Annotated[str | None, Query(description="Short for attribute=tags and value=TAG.")] = None,
        attribute: Annotated[str | None, Query(description=f"One of {', '.join(ATTRIBUTES)}")] = None,
        value: Annotated[str | None, Query(description="Which entry of the attribute; without it, all.")] = None,
        pseudonym: ByPseudonym = False,
    ) -> dict[str, Any]:
        """The evidence of a tag, or of any attribute: ids, weights, times and redacted snippets."""
        if (tag is None) == (attribute is None):
            raise Problem(422, "name either tag=, or attribute= (and value=)")
        service.admit(caller, "why:read")
        index, found = service.reasons(caller, "why", user, pseudonym)
        told = why(json.loads(found), "tags" if attribute is None else attribute, value if tag is None else tag)
        return {"version": index.version, **told}

    @app.get(ROUTE, responses=contract.PROFILE, response_class=Response)
    async def profile(
        caller: Asker,
        user: User,
        fields_wanted: Annotated[
            str | None, Query(alias="fields", description=f"Some of {', '.join(FIELDS)}", examples=["tags,sentiment"])
        ] = None,
        pseudonym: ByPseudonym = False,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """A user's profile. Its ETag is the version of the profiles."""
        service.admit(caller, "profiles:read")
        index, found = service.profile(caller, "profiles", user, pseudonym)
        tag = etag(index)
        if if_none_match is not None and is_named(tag, if_none_match):
            return Response(status_code=304, headers={"ETag": tag})
        body = found if fields_wanted is None else fields(found, fields_wanted)
        return Response(body, media_type=JSON, headers={"ETag": tag})

    @app.get("/v1/tags", responses=contract.TAGS)
    async def tags(caller: Asker) -> dict[str, Any]:
        """What a person reads for the tags of the shop's taxonomy; a tag that is not among them is named by its id."""
        service.admit(caller, "profiles:read")
        return {"names": dict(service.tags)}

    @app.post("/v1/profiles:batch", responses=contract.BATCH, response_class=Response)
    async def batch(caller: Asker, wanted: Users) -> Response:
        """Profiles of up to 1,000 users in the order asked for, null where there is none; `missing` names those."""
        service.admit(caller, "profiles:read", max(1, len(wanted.users)))
        index, found = service.profiles(caller, "profiles:batch", wanted.users)
        if sum(len(each) for each in found if each is not None) > MAX_ANSWER:
            raise Problem(413, f"these profiles are more than {MAX_ANSWER:,} bytes; ask for fewer at once")
        missing = [user for user, each in zip(wanted.users, found, strict=True) if each is None]
        head = json.dumps({"version": index.version, "missing": missing}, ensure_ascii=False)
        body = head[:-1].encode() + b', "profiles": [' + b",".join(each or b"null" for each in found) + b"]}"
        return Response(body, media_type=JSON, headers={"ETag": etag(index)})


def _nearby(app: FastAPI, service: Service) -> None:
    @app.get("/v1/users/{user:path}/similar", responses=contract.SIMILAR)
    async def similar(caller: Asker, user: User, k: Nearest = 10, pseudonym: ByPseudonym = False) -> dict[str, Any]:
        """The users whose vectors are nearest to a user's, and the tags that both have. None without a vector."""
        service.admit(caller, "profiles:read", _cost_of(k))
        return await service.similar(caller, user, pseudonym, k)

    @app.get("/v1/users/{user:path}/items", responses=contract.ITEMS_FOR)
    async def items_for(caller: Asker, user: User, k: Nearest = 10, pseudonym: ByPseudonym = False) -> dict[str, Any]:
        """The items nearest to a user that they have not bought, each with the reason. None without a vector."""
        service.admit(caller, "profiles:read", _cost_of(k))
        return await service.items_for(caller, user, pseudonym, k)

    @app.get("/v1/items/{item:path}/similar", responses=contract.ITEMS_LIKE)
    async def items_like(caller: Asker, item: Item, k: Nearest = 10) -> dict[str, Any]:
        """The items whose titles mean nearly the same as an item's."""
        service.admit(caller, "profiles:read", _cost_of(k))
        return await service.items_like(item, k)


def _cost_of(near: int) -> float:
    """Look-ups that a search costs as much as."""
    return 1 + near / NEAR_OF_ONE


def _texts(app: FastAPI, service: Service, measures: Measures) -> None:
    @app.post("/v1/embed", responses=contract.EMBED, response_class=Response)
    async def embed(caller: Asker, wanted: Texts) -> Response:
        """The vector, the feeling and the tags of up to 256 texts, read as reviews; nothing is kept."""
        service.admit(caller, "embed", max(1, len(wanted.texts)))
        for text in wanted.texts:
            insist_on_text("a text", text, MAX_TEXT_CHARS)
        if service.embed is None:
            raise Problem(501, "this endpoint has no encoder; set serve.encoders to 1 or more")
        with service.gate.inside():
            measures.embedded(len(wanted.texts))
            found = await service.embed(wanted.texts)
        return Response(b'{"texts": [' + b",".join(found) + b"]}", media_type=JSON)


def _segments(app: FastAPI, service: Service) -> None:
    @app.post("/v1/segments:count", responses=contract.COUNT)
    async def count(caller: Asker, wanted: Segment) -> dict[str, Any]:
        """How many users satisfy a predicate on the columns of their profiles, and the pseudonyms of some."""
        service.admit(caller, "segments:read")
        service.audit.note(caller.name, f"segments:count {wanted.predicate}", [], 0)
        found = await service.segments.count(wanted.predicate)
        service.audit.note(caller.name, "segments:count:sample", found["sample"], len(found["sample"]))
        return found

    @app.post("/v1/segments:export", response_class=Response, responses=contract.EXPORT)
    async def export(caller: Asker, wanted: Export) -> Response:
        """The users who satisfy a predicate, with some columns, as CSV or Parquet."""
        service.admit(caller, "segments:export")
        service.audit.note(caller.name, f"segments:export {wanted.predicate}", [], 0)
        version, users, pieces = await service.segments.export(wanted.predicate, wanted.columns, wanted.format)
        kind = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}[wanted.format]
        name = f'attachment; filename="segment-{version}.{wanted.format}"'
        return StreamingResponse(pieces, media_type=kind, headers={"Content-Disposition": name, "X-Users": str(users)})


def _computed(app: FastAPI, service: Service) -> None:
    @app.post("/v1/profiles:compute", responses=contract.COMPUTE)
    async def compute(caller: Asker, wanted: Rows) -> dict[str, Any]:
        """The profile of rows that are sent, by the same fold and fuse as `build`; nothing is kept."""
        service.admit(caller, "embed", max(1, len(wanted.rows)))
        if service.compute is None:
            raise Problem(501, "this endpoint has no encoder; set serve.encoders to 1 or more")
        rows = [row.model_dump(exclude_none=True) for row in wanted.rows]
        for at, row in enumerate(rows):
            for name, value in row.items():
                if isinstance(value, str):
                    insist_on_text(f"rows.{at}.{name}", value, MAX_TEXT_CHARS)
        with service.gate.inside():
            return await service.compute(rows)


def _health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses=contract.READY)
    async def ready() -> dict[str, Any]:
        """Whether all routes can answer, and from which version."""
        if service.waits_for is not None:
            raise Problem(503, f"not ready: {service.waits_for}", {"Retry-After": "1"})
        return {"status": "ok", "version": service.index.version, "profiles": service.index.manifest.profiles}

    @app.get("/v1/me", responses=contract.ME)
    async def me(caller: Asker) -> dict[str, Any]:
        """Whose token this is, and what it opens."""
        service.admit(caller, "profiles:read")
        return {"name": caller.name, "scopes": sorted(caller.scopes)}


def _metrics(app: FastAPI, service: Service, measures: Measures) -> None:
    @app.get(METRICS, responses=contract.METRICS, response_class=Response)
    async def metrics(caller: Asker) -> Response:
        """What Prometheus reads of the replica that answers."""
        service.admit(caller, "metrics:read")
        return Response(measures.to_bytes(), headers={"Content-Type": Measures.MEDIA_TYPE})


def _page(app: FastAPI) -> None:
    body = files("ray_profile.serve").joinpath("page.html").read_bytes()

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The page for people. It may load nothing but itself, and talk to nobody but this server."""
        return Response(body, media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)


def _guarded(app: Application, service: Service) -> Application:
    """The application behind what is looked at first: a token, before anything that was sent is read; the size of the
    body; and the time of an answer."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        size, started, too_long = 0, False, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal size, too_long
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                too_long = True
                return {"type": "http.disconnect"}  # what the application makes of it is replaced below
            return message

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if too_long:
                return
            started = True
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        async def refuse(problem: Problem) -> None:
            nonlocal too_long
            too_long = False
            if not started:
                await _answer(problem)(scope, receive, watched)

        try:
            headers = dict(scope["headers"])
            if (scope["path"].startswith("/v1/") and scope["path"] != OPENAPI) or scope["path"] == METRICS:
                scope[CALLER] = await service.asker(headers.get(b"authorization", b"").decode("latin-1"))
            declared = headers.get(b"content-length", b"0")
            if declared.isdigit() and int(declared) > MAX_BODY:
                raise _TOO_LONG
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await app(scope, counted, watched)
            if too_long:
                raise _TOO_LONG
        except Problem as problem:
            await refuse(problem)
        except TimeoutError:
            await refuse(Problem(503, f"no answer in {TIMEOUT_SECONDS:g} s; ask again", {"Retry-After": "1"}))
        except Exception:  # `_on_error` has logged it and told the caller that something is wrong; the server goes on
            if too_long:
                await refuse(_TOO_LONG)

    return guarded


def _answer(problem: Problem) -> Response:
    return Response(problem.to_bytes(), problem.status, problem.headers, MEDIA_TYPE)


async def _on_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _answer(error)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return _answer(Problem(422, f"{place} = {quoted(first.get('input'))}: {first['msg']}"))


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(Problem(error.status_code, str(error.detail), error.headers))


async def _on_error(request: Request, error: Exception) -> Response:
    route = getattr(request.scope.get("route"), "path", "no route")  # the path itself may hold somebody's id
    return _answer(fault(request.method, route, error))


_HANDLERS: dict[type[Exception], Any] = {
    Problem: _on_problem,
    RequestValidationError: _on_invalid,
    HTTPException: _on_http,
    Exception: _on_error,
}
_TOO_LONG = Problem(413, f"the body is longer than {MAX_BODY:,} bytes; send less at once")
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"private, no-cache")]
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}

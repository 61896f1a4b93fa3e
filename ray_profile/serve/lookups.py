"""The hot path: a profile as it lies in the index, sent without what a framework does for routes that need more.

FastAPI's part of `GET /v1/profiles/{user}` costs ten times what the look-up itself does. So the request that is asked
thousands of times a second, an id and nothing else, is answered here; everything unusual goes on to the route, whose
answers these are, to the byte.
"""

from __future__ import annotations

from types import SimpleNamespace

from ray_profile.serve.asgi import Application, Receive, Scope, Send
from ray_profile.serve.problems import Problem, fault
from ray_profile.serve.service import Service, etag

CALLER = "ray_profile.caller"  # where the scope of a request says who asks
ROUTE = "/v1/profiles/{user:path}"
_PREFIX = "/v1/profiles/"
_FOUND = SimpleNamespace(path=ROUTE)  # what Starlette leaves in the scope, for whoever counts requests by route
_JSON = (b"content-type", b"application/json")


def straight(app: Application, service: Service) -> Application:
    """An application before whose own route plain look-ups are answered. It raises `Problem` for what it refuses."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_plain(scope):
            await app(scope, receive, send)
            return
        scope["route"], caller = _FOUND, scope[CALLER]
        try:
            service.admit(caller, "profiles:read")
            index, body = service.profile(caller, "profiles", scope["path"][len(_PREFIX) :])
            tag = etag(index)
        except Problem:
            raise
        except Exception as error:
            raise fault("GET", ROUTE, error) from error
        known = next((value for name, value in scope["headers"] if name == b"if-none-match"), None)
        if known is not None and is_named(tag, known.decode("latin-1")):
            await send({"type": "http.response.start", "status": 304, "headers": [(b"etag", tag.encode())]})
            await send({"type": "http.response.body", "body": b""})
            return
        headers = [(b"etag", tag.encode()), (b"content-length", b"%d" % len(body)), _JSON]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answered


def is_named(tag: str, if_none_match: str) -> bool:
    """Whether a header of that name has this tag."""
    return tag in (each.strip() for each in if_none_match.split(","))


def _is_plain(scope: Scope) -> bool:
    """Whether it asks for a profile by an id that no rule of routing reads in another way, and for nothing more."""
    if scope["type"] != "http":
        return False  # a server's start and end
    path: str = scope["path"]
    return (
        path.startswith(_PREFIX)
        and scope["method"] == "GET"
        and not scope["query_string"]
        and not scope.get("root_path")
        and not path.endswith("/why")
        and path.isprintable()
    )

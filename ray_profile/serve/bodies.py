"""What a body may be: JSON as RFC 8259 has it, and nothing that two readers would read differently.

Python's reader lets the last of two equal names win and takes NaN for a number; a proxy or a log in front of us may see
it otherwise, so both are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from ray_profile.serve.problems import Problem, quoted


class JsonRoute(APIRoute):
    """A route whose body, where it takes one, is JSON and says so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`. Raises `Problem` 415 for another media type."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handled(request: Request) -> Response:
            _insist_on_json(request.headers.get("content-type", ""))
            return await handle(_JsonRequest(request.scope, request.receive))

        return handled


class _JsonRequest(Request):
    async def json(self) -> Any:
        """The body. Raises `HTTPException` 400, which FastAPI lets through as it is, for what is no JSON."""
        body = await self.body()
        try:
            return json.loads(body.decode("utf-8"), object_pairs_hook=_once_each, parse_constant=_no_number)
        except json.JSONDecodeError as error:
            raise HTTPException(400, f"the body is no JSON: {error.msg} at character {error.pos}") from error
        except UnicodeDecodeError as error:
            raise HTTPException(
                400, f"the body is no {error.encoding}: byte {error.start} is {error.reason}"
            ) from error
        except RecursionError as error:
            raise HTTPException(400, "the body is nested too deep") from error
        except ValueError as error:  # also an integer of thousands of digits
            raise HTTPException(400, f"the body is no JSON: {error}") from error


def _insist_on_json(declared: str) -> None:
    kind = declared.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem(415, f"Content-Type = {quoted(declared)} is not what the route reads; send application/json")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"an object has {quoted(name)} more than once")
        found[name] = value
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")

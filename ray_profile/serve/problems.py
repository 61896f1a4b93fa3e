"""What a caller is told when a request cannot be answered: problem details (RFC 9457), never a traceback."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus

MEDIA_TYPE = "application/problem+json"
log = logging.getLogger("ray_profile.serve")


class Problem(Exception):
    """A request that is refused: its HTTP status, and a sentence that names the value, the rule and the next step."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)  # as args, so that it survives pickling between processes
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    def to_bytes(self) -> bytes:
        """The body, as JSON that is pure ASCII: a lone surrogate in what is quoted cannot break it."""
        said = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        return json.dumps({**said, "detail": self.detail}).encode()


def fault(method: str, route: str, error: Exception) -> Problem:
    """What a caller is told of a mistake of ours; the log says which. `route` is its pattern: a path may hold an id."""
    log.error("%s %s", method, route, exc_info=error)
    return Problem(500, "something is wrong here; it is in the server's log")


def insist_on_text(what: str, text: str, most: int) -> None:
    """Raise `Problem` 422 for what is too long, or holds half a surrogate pair, which JSON can say and UTF-8 cannot."""
    if len(text) > most:
        raise Problem(422, f"{what} has {len(text):,} characters; {most:,} are the most")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Problem(422, f"{what} holds half a surrogate pair ({quoted(text)}), which is no text") from error


def quoted(value: object, most: int = 80) -> str:
    """A value of the caller's, short and printable."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"

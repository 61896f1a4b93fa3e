"""An open-loop HTTP client: requests leave at a constant rate, whether or not the ones before them are answered.

    python benchmarks/open_loop.py PORT RATE SECONDS PATHS [TOKEN]

A latency counts from the moment at which a request was due to leave, so what waits because the server is slow is
counted as waiting (no coordinated omission). Rate 0 asks as fast as the connections allow instead, which says how much
there is at the most. One thread and `select`, whose clock is in microseconds, cost 30 microseconds a request; that
share of the machine is the client's. Prints one JSON object; latencies are in milliseconds.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

CONNECTIONS = 64
DRAIN_SECONDS = 5.0  # after the last request, for answers that are late


@dataclass(eq=False)
class Connection:
    """A connection that is kept alive, with at most one request under way."""

    address: tuple[str, int]
    due: float = 0.0  # when the request under way was to leave
    got: bytearray = field(default_factory=bytearray)
    whole: int = 0  # bytes of the answer, once its head is there
    is_last: bool = False  # the server will close it after this answer

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Connect, also anew."""
        self.is_last = False
        self.socket = socket.create_connection(self.address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """For `select`."""
        return self.socket.fileno()

    def ask(self, request: bytes, due: float) -> None:
        """Send a request."""
        self.due, self.whole = due, 0
        self.got.clear()
        self.socket.sendall(request)

    def answer(self) -> int | None:
        """The status of an answer that is there whole, or None. Raises `ConnectionError` where none will be."""
        piece = self.socket.recv(1 << 18)
        if not piece:
            raise ConnectionResetError("closed before an answer")
        self.got += piece
        if not self.whole:
            end = self.got.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = bytes(self.got[:end]).lower()
            at = head.find(b"\r\ncontent-length:")
            if at < 0:
                raise ConnectionError(f"an answer of no declared length: {head!r}")
            self.whole = end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])
            self.is_last = b"\r\nconnection: close" in head
        return int(self.got[9:12]) if len(self.got) >= self.whole else None


@dataclass(eq=False)
class Load:
    """What came of some requests."""

    milliseconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)  # 0: the connection broke
    last: float = 0.0  # when the last answer came

    def note(self, status: int, due: float, now: float) -> None:
        """An answer."""
        self.milliseconds.append((now - due) * 1000)
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.last = now

    def to_json(self, began: float, unanswered: int) -> dict[str, Any]:
        """As it is printed."""
        ordered = sorted(self.milliseconds) or [float("inf")]
        points = {f"p{share:g}": ordered[int(len(ordered) * share / 100)] for share in (50, 90, 99, 99.9)}
        return {
            "answered": len(self.milliseconds),
            "unanswered": unanswered,
            "statuses": self.statuses,
            "rate": len(self.milliseconds) / (self.last - began) if self.milliseconds else 0.0,
            **points,
            "max": ordered[-1],
        }


def load(address: tuple[str, int], requests: Sequence[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Send the requests in turn, `rate` a second (0: whenever a connection is free), and say what came of it."""
    idle = deque(Connection(address) for _ in range(CONNECTIONS))
    busy: set[Connection] = set()
    done, sent = Load(), 0
    began = perf_counter()
    end, total = began + seconds, int(rate * seconds)
    while True:
        now = perf_counter()
        is_all_sent = sent == total if rate else now > end
        if (is_all_sent and not busy) or now > end + DRAIN_SECONDS:
            break
        due = began + sent / rate if rate else now
        if idle and due <= now and not is_all_sent:
            connection = idle.popleft()
            connection.ask(requests[sent % len(requests)], due)
            busy.add(connection)
            sent += 1
            continue
        wait = due - now if idle and not is_all_sent else 0.1
        for connection in select.select(busy, (), (), wait)[0]:
            _read(connection, done, idle, busy)
    return done.to_json(began, (total if rate else sent) - len(done.milliseconds))


def _read(connection: Connection, done: Load, idle: deque[Connection], busy: set[Connection]) -> None:
    try:
        status = connection.answer()
    except OSError:
        status = 0
    if status == 0 or (status is not None and connection.is_last):
        connection.socket.close()
        connection.open()
    if status is not None:
        done.note(status, connection.due, perf_counter())
        busy.discard(connection)
        idle.append(connection)


def request(path: str, token: str | None) -> bytes:
    """A GET, as it goes over the wire."""
    shown = f"Authorization: Bearer {token}\r\n" if token else ""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{shown}\r\n".encode()


def main() -> None:
    port, rate, seconds, paths, *token = sys.argv[1:]
    lines = Path(paths).read_text(encoding="utf-8").splitlines()
    requests = [request(path, token[0] if token else None) for path in lines]
    print(json.dumps(load(("127.0.0.1", int(port)), requests, float(rate), float(seconds))))


if __name__ == "__main__":
    main()

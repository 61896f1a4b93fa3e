"""`serve`: the profiles of a root behind Ray Serve. `serve deploy` names `ray_profile.pipelines.serve:app`.

A replica opens the newest index before it takes a request, and looks every few seconds whether there is a newer one: it
opens that beside the old one and then puts it in its place, so a request that is under way ends on the version that it
began with.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import ray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from ray_profile.config import Config, load
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.errors import ConfigError, RootError
from ray_profile.pipelines import proxy
from ray_profile.pipelines.cluster import can_grow, connected
from ray_profile.pipelines.encoding import Encoder
from ray_profile.pipelines.index import index
from ray_profile.pipelines.lookup import key_of
from ray_profile.pipelines.tables import profiles_table
from ray_profile.serve import tls
from ray_profile.serve.access import Issuer, TokenFile
from ray_profile.serve.app import create
from ray_profile.serve.asgi import Application
from ray_profile.serve.audit import Audit
from ray_profile.serve.limits import Gate
from ray_profile.serve.outside import Outside
from ray_profile.serve.problems import Problem
from ray_profile.serve.segments import Segments
from ray_profile.serve.service import MAX_EMBEDDING, Compute, Service
from ray_profile.serve_config import Serve, Span, is_loopback, least, most
from ray_profile.store.index import Index, Manifest, current
from ray_profile.store.root import Root
from ray_profile.store.scan import scan_files

NAME = "ray_profile"
LOOK_UP_CPUS = 0.5  # of a replica: it waits more than it computes
QUEUED = 1_000  # look-ups that wait for a replica; more are told to come again
REQUEST_SECONDS = 60.0
AT_ONCE = 48  # look-ups that a replica has under way, beside what waits for the encoder
LOOK_UPS_WANTED = 16  # of those, for the autoscaler: one takes a millisecond, so that many are a queue
TEXTS_WANTED = 8  # requests of an encoder under way, for the autoscaler: one batch computes, the next one fills
DRAIN_SECONDS = 40.0  # that a replica which is to end has for what it has under way: a request ends within 30
HEALTH_SECONDS = 5.0  # between looks whether a replica lives
ENCODER_SECONDS = 5.0  # in which an encoder says that it is there
log = logging.getLogger("ray.serve")


class Arguments(BaseModel):
    """What `serve deploy` hands over under `args`."""

    model_config = ConfigDict(extra="forbid")

    config: str  # the configuration file, on every node
    overrides: list[str] = []


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
        self._following = [asyncio.create_task(self._follow())]
        if encoder is not None:
            self._following.append(asyncio.create_task(self._watch(encoder)))
        for issuer in self._service.issuers:
            if isinstance(issuer, Outside):
                self._following.append(asyncio.create_task(issuer.keys.follow()))

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

    async def _watch(self, encoder: Any) -> None:
        """Note whether an encoder answers, so that nobody who asks waits to hear it."""
        self._service.waits_for = "the encoder does not answer yet"
        while True:
            try:
                async with asyncio.timeout(ENCODER_SECONDS):
                    await encoder.here.remote()
                self._service.waits_for = None
                await asyncio.sleep(self._config.serve.refresh_seconds)
            except Exception as error:  # whatever it is, there may be another replica at the next look
                log.warning("no encoder answers: %r", error)
                self._service.waits_for = f"no encoder answered within {ENCODER_SECONDS:g} s"
                await asyncio.sleep(1.0)

    def _newer(self) -> Index | None:
        manifest = current(self._root)
        if manifest is None or manifest == self._service.index.manifest:  # not "newer": a root may be built anew
            return None
        return Index.open(self._root, manifest, Path(self._config.serve.cache))


def service_of(config: Config, root: Root) -> Service:
    """What a replica answers from. Raises `RootError` where nothing was indexed or the pseudonym key is another one."""
    key = key_of(config, root)
    opened = Index.open(root, _indexed(root), Path(config.serve.cache))
    audit, segments = Audit(Path(config.serve.audit)), Segments(partial(scanned, root))
    tags = () if config.taxonomy.path is None else Taxonomy.load(config.taxonomy.path).tags
    names, gate = {tag.id: tag.name for tag in tags}, Gate(waiting(config.serve))
    return Service(opened, key, audit, segments, issuers_of(config.serve), tags=names, gate=gate)


def waiting(settings: Serve) -> int:
    """Requests of one look-up replica that may wait for the encoders: so many that all of them have work."""
    return MAX_EMBEDDING * max(1, math.ceil(most(settings.encoders) / least(settings.replicas)))


def issuers_of(settings: Serve) -> list[Issuer]:
    """Who knows the tokens of callers; nobody where none are wanted. Raises `ConfigError` for files that are not so."""
    found: list[Issuer] = []
    if settings.tokens is not None:
        found.append(TokenFile(Path(settings.tokens)))
    if settings.jwt is not None:
        found.append(Outside.of(settings.jwt))
    return found


def scanned(root: Root) -> tuple[int, pl.LazyFrame]:
    """The newest profiles, to be read as far as a question needs."""
    table = profiles_table(root)
    handle = table.open()
    assert handle is not None, "an index is of profiles"
    return handle.version, scan_files(table, handle.files())


def app(args: dict[str, Any]) -> serve.Application:
    """The application, for `serve deploy` and `serve run`. `args` are `Arguments`; Serve itself would make them of an
    annotation that is a class, and in this file annotations are strings.

    Raises `ConfigError` where it has no tokens: Serve listens on all interfaces, unless it is told otherwise. And where
    it names a certificate that Serve was not told of.
    """
    arguments = Arguments.model_validate(args)
    config = load(arguments.config, arguments.overrides)
    if not config.serve.asks_who:
        raise ConfigError(
            f"{arguments.config} sets no serve.tokens, and on a cluster the endpoint would answer anybody; make a "
            "token with `ray-profile token new`, or name the issuer of yours under [serve.jwt]"
        )
    if config.serve.tls_certificate is not None:
        _insist_on_tls()
    return bound(config)


def bound(config: Config) -> serve.Application:
    """The application of a configuration."""
    made: Any = Profiles
    encoder: Any = Encoder
    settings = config.serve
    quiet = LoggingConfig(enable_access_log=False)  # the audit log says who asked
    gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0)) if ray.is_initialized() else 0.0  # type: ignore[no-untyped-call]
    common = {
        "logging_config": quiet,
        "graceful_shutdown_timeout_s": DRAIN_SECONDS,
        "graceful_shutdown_wait_loop_s": 1.0,
        "health_check_period_s": HEALTH_SECONDS,
    }
    texts = None
    if settings.encoders:
        texts = encoder.options(
            max_ongoing_requests=(waiting(settings) + 1) * most(settings.replicas),  # each asks too whether it is there
            ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
            **_scaled(settings.encoders, TEXTS_WANTED),
            **common,
        ).bind(config)
    look_ups = made.options(
        max_ongoing_requests=AT_ONCE + waiting(settings),
        max_queued_requests=QUEUED,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        ray_actor_options={"num_cpus": LOOK_UP_CPUS},
        **_scaled(settings.replicas, LOOK_UPS_WANTED),
        **common,
    )
    bound: serve.Application = look_ups.bind(config, texts)
    return bound


def _scaled(replicas: int | Span, wanted: float) -> dict[str, Any]:
    """How many replicas Serve keeps: a number, or as many as leave each `wanted` requests under way."""
    if isinstance(replicas, int):
        return {"num_replicas": replicas}
    span = {"min_replicas": replicas.min, "max_replicas": replicas.max, "target_ongoing_requests": wanted}
    return {"autoscaling_config": span}


def start(config: Config) -> str:
    """Index what is not yet, start the application here (or on the cluster of RAY_ADDRESS), and give its address.

    Raises `ConfigError` where it would be open to others without tokens, the port is taken, or TLS cannot be had.
    """
    settings = config.serve
    secured = _closed(settings)
    _insist_on_port(settings.host, settings.port)
    index(config, local=True)
    connected(config.build.cpus)
    _insist_on_room(settings)
    log.setLevel(logging.WARNING)  # what Serve tells of its own start is not for whoever started this
    options = {"host": settings.host, "port": settings.port, "request_timeout_s": REQUEST_SECONDS, **secured}
    serve.start(http_options=options)
    if secured:
        _insist_on_tls()
    serve.run(bound(config), name=NAME, route_prefix="/")
    return f"http{'s' if secured else ''}://{settings.host}:{settings.port}"


def _closed(settings: Serve) -> Mapping[str, str]:
    """What Serve's proxy is told of TLS. Raises `ConfigError` where the endpoint would be open to others without
    tokens, or a file that closes it cannot be used."""
    if not settings.asks_who and not proxy.is_own():
        raise ConfigError(
            "serve.tokens is not set, and the endpoint of the cluster that RAY_ADDRESS names would answer anybody; "
            "make a token with `ray-profile token new`, or unset RAY_ADDRESS to serve this machine alone"
        )
    if not settings.asks_who and not is_loopback(settings.host):
        raise ConfigError(
            f"serve.host = {settings.host!r} would answer anybody, for serve.tokens is not set; make a token with "
            "`ray-profile token new`, or leave serve.host at 127.0.0.1"
        )
    issuers_of(settings)
    secured = tls.options(settings.tls_certificate, settings.tls_key, datetime.now(UTC))
    if secured and RAY_SERVE_ENABLE_HA_PROXY:
        raise ConfigError(
            "serve.tls_certificate is set, and the HAProxy that RAY_SERVE_ENABLE_HA_PROXY starts knows no TLS; unset "
            "it, or leave serve.tls_certificate out and let a proxy in front terminate TLS"
        )
    if RAY_SERVE_ENABLE_HA_PROXY and proxy.is_own() and proxy.chosen(settings) == "python":
        raise ConfigError(
            "RAY_SERVE_ENABLE_HA_PROXY is set, and HAProxy opens ports beside the endpoint's own: it is for endpoints "
            "that ask for tokens and do not end TLS (serve.proxy); unset it"
        )
    return secured


def _insist_on_room(settings: Serve) -> None:
    """Raise `ConfigError` where a cluster that cannot grow has no room for the replicas that there always are: they
    would wait for ever."""
    replicas, encoders = least(settings.replicas), least(settings.encoders)
    wanted = replicas * LOOK_UP_CPUS + encoders
    have = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    if wanted > have and not can_grow():
        raise ConfigError(
            f"serve.replicas = {replicas} and serve.encoders = {encoders} want {wanted:g} CPUs, and "
            f"Ray has {have:g}; lower them, or name a cluster with more in RAY_ADDRESS"
        )


def _insist_on_tls() -> None:
    """Raise `ConfigError` where Serve runs and answers in plain text: that is settled when it starts."""
    client = _get_global_client()
    if client is None or client.http_config.ssl_certfile is None:
        raise ConfigError(
            "serve.tls_certificate is set, and the Serve of this cluster was started without TLS; stop it (`serve "
            "shutdown`) and start it with ssl_certfile and ssl_keyfile among its http_options, or leave "
            "serve.tls_certificate out and let a proxy in front terminate TLS"
        )


def stop() -> None:
    """Let requests that are under way end, then stop the application, and Serve and Ray where they are this command's
    own: on a cluster others may have applications."""
    if ray.is_initialized():
        serve.delete(NAME)
        if proxy.is_own():
            serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


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


def _insist_on_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"serve.port = {port} on {host} cannot be used ({error.strerror}); choose another, or stop what has it"
            ) from error

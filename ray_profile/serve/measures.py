"""What Prometheus reads of one replica, in a registry of its own: no user, caller or path is in any label."""

from __future__ import annotations

from collections.abc import MutableMapping
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from ray_profile.serve.asgi import Application, Receive, Scope, Send
from ray_profile.serve.service import Service

NO_ROUTE = "none"
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Measures:
    """The counts of one application."""

    MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "ray_profile_requests",
            "Answers. 429 is a refusal for its rate or its number; route none was refused before it had one.",
            ("route", "method", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "ray_profile_request_seconds", "From a request to the end of its answer.", ("route",),
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._in_flight = Gauge("ray_profile_requests_in_flight", "Requests under way.", registry=registry)
        self._texts = Histogram(
            "ray_profile_embed_texts", "Texts of a request to embed.", buckets=TEXTS, registry=registry
        )
        for name, meaning, value in (
            ("version", "The version of the profiles that is served.", lambda: service.index.version),
            ("profiles", "How many profiles it has.", lambda: service.index.manifest.profiles),
            ("made_timestamp_seconds", "When it was made; 0: not known.", lambda: service.index.manifest.made),
        ):
            Gauge(f"ray_profile_index_{name}", meaning, registry=registry).set_function(value)

    def embedded(self, texts: int) -> None:
        """A request to embed so many texts was let in."""
        self._texts.observe(texts)

    def to_bytes(self) -> bytes:
        """All of them as Prometheus reads them, of `MEDIA_TYPE`."""
        return generate_latest(self._registry)

    def of(self, app: Application) -> Application:
        """An application whose requests are counted by the template of their route, which Starlette leaves in the
        scope."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status, began = 0, perf_counter()

            async def noted(message: MutableMapping[str, Any]) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            with self._in_flight.track_inprogress():
                try:
                    await app(scope, receive, noted)
                finally:
                    self._count(scope, status, perf_counter() - began)

        return counted

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        """`status` 0: the caller went away before there was one."""
        route = getattr(scope.get("route"), "path", NO_ROUTE).replace(":path}", "}")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._requests.labels(route, method, status).inc()
        self._seconds.labels(route).observe(seconds)

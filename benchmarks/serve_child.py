"""One server of benchmarks/serve.py, in a process of its own: `python serve_child.py KIND CONFIG PORT`.

It prints a line when it answers, and ends when its standard input is closed. Every line that it reads before makes it
deploy the application anew, where Ray Serve is what it runs under.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_profile.config import Config, load

QUIET = {"log_level": "error", "access_log": False, "lifespan": "off"}


def bare(config: Config) -> Any:
    """The peer: what anybody would write in FastAPI over the same files; no tokens, no notes, no pseudonyms to make."""
    from fastapi import FastAPI, Response

    from ray_profile.sources.redact import bucket_of_one
    from ray_profile.store.index import Index, current
    from ray_profile.store.root import Root

    root = Root.existing(config.root)
    manifest = current(root)
    assert manifest is not None
    index = Index.open(root, manifest, Path(config.serve.cache))
    app = FastAPI()

    @app.get("/v1/profiles/{user}")
    async def profile(user: str) -> Response:
        found = index.get(bucket_of_one(user, manifest.buckets), user)
        return Response(status_code=404) if found is None else Response(found, media_type="application/json")

    return app


def ours(config: Config) -> Any:
    """Our application, with nothing of Ray around it."""
    from ray_profile.pipelines.serve import service_of
    from ray_profile.serve.app import create
    from ray_profile.store.root import Root

    return create(service_of(config, Root.existing(config.root)))


def under_uvicorn(make: Callable[[Config], Any], config: Config) -> None:
    """Serve an application until standard input ends."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(make(config), port=config.serve.port, **QUIET))  # type: ignore[arg-type]

    def wait() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=wait, daemon=True).start()
    print("ready", flush=True)
    server.run()


def under_serve(config: Config) -> None:
    """The same through Ray Serve, as `ray-profile serve` starts it, until standard input ends."""
    from ray import serve

    from ray_profile.pipelines import serve as serving

    serving.start(config)
    print("ready", flush=True)
    for at, _ in enumerate(sys.stdin):
        other = config.serve.model_copy(update={"refresh_seconds": 6.0 + at % 2})  # what is the same is not deployed
        serve.run(serving.bound(config.model_copy(update={"serve": other})), name=serving.NAME, route_prefix="/")
        print("deployed", flush=True)
    serving.stop()


def main() -> None:
    kind, path, *overrides = sys.argv[1:]
    config = load(path, overrides)
    if kind in ("bare", "ours"):
        under_uvicorn({"bare": bare, "ours": ours}[kind], config)
    else:
        under_serve(config)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # Ray's own threads need not be waited for

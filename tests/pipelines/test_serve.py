"""The endpoint under Ray Serve: it answers, follows new versions, survives killed replicas, and is closed to others."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import certificates
import polars as pl
import pytest
import tiny

from ray_profile.config import Config, parse
from ray_profile.errors import ConfigError, RootError
from ray_profile.pipelines.build import build
from ray_profile.pipelines.index import index
from ray_profile.serve.app import TIMEOUT_SECONDS
from ray_profile.sources.simulate import Shop
from ray_profile.store.index import current
from ray_profile.store.root import Root

pytestmark = pytest.mark.ray


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def port() -> int:
    """The endpoint's."""
    return free_port()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, shop: Shop, port: int) -> Config:
    folder = tmp_path_factory.mktemp("endpoint")
    told = [f"serve.port={port}", "serve.refresh_seconds=0.2", f"serve.audit={folder}/audit.jsonl", "serve.replicas=2"]
    told.append("serve.encoders={ min = 1, max = 2 }")
    made = tiny.config_of(shop, folder / "root", *told)
    build(made, local=True, clock=tiny.CLOCK)
    return made


@pytest.fixture(scope="module")
def users(shop: Shop) -> list[str]:
    """Customers who wrote, by their own ids."""
    wrote = pl.concat([pl.read_ndjson(path) for path in sorted(shop.config.parent.glob("reviews-*.jsonl.gz"))])
    return sorted(str(user) for user in wrote["user_id"].unique())


@pytest.fixture(scope="module")
def running(config: Config, ray_here: None) -> Iterator[Config]:  # noqa: ARG001
    from ray import serve

    from ray_profile.pipelines import serve as serving

    assert serving.start(config) == f"http://127.0.0.1:{config.serve.port}"
    until_ready(config.serve.port)
    yield config
    serve.shutdown()


def until_ready(port: int) -> None:
    """Until both look-up replicas say that they are ready; the test's own time limit ends it if they never do."""
    while {ask(port, "/readyz")[0] for _ in range(10)} != {200}:
        pass


def replicas(name: str) -> dict[int, Any]:
    """The processes of a deployment, by their ids."""
    import psutil

    mine = psutil.Process().children(recursive=True)
    return {each.pid: each for each in mine if f"ServeReplica:ray_profile:{name}" in " ".join(each.cmdline())}


def ask(port: int, path: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, json.loads(body) if body[:1] == b"{" else body


def test_it_answers_from_the_index(running: Config, users: list[str]) -> None:
    for user in users[:5]:
        status, found = ask(running.serve.port, f"/v1/profiles/{quote(user)}")
        assert status == 200
        assert found["rows"] > 0
    assert ask(running.serve.port, "/v1/profiles/nobody")[0] == 404
    status, page = ask(running.serve.port, "/")
    assert (status, b"<!doctype html>" in page) == (200, True)


def test_a_new_version_is_served_without_a_failed_request(running: Config, users: list[str]) -> None:
    port = running.serve.port
    before = ask(port, "/readyz")[1]["version"]
    answers: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            answers.append(ask(port, f"/v1/profiles/{quote(users[0])}")[0])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        assert build(running, local=True, refresh=True, clock=tiny.CLOCK).indexed is not None
        newest = current(Root.existing(running.root))
        assert newest is not None
        assert newest.version > before
        seen: set[int] = set()
        while seen != {newest.version}:  # both replicas; the test's own time limit ends it if they never do
            seen = {ask(port, "/readyz")[1]["version"] for _ in range(10)}
    finally:
        stop.set()
        thread.join()
    assert set(answers) == {200}


def test_kills_and_a_new_deployment_cost_at_most_a_retry(running: Config, users: list[str]) -> None:
    """3,000 requests of four callers while two replicas are killed and the application is deployed anew: none fails
    twice, and afterwards there are as many replicas as before, none of them an old one."""
    from ray import serve

    from ray_profile.pipelines import serve as serving

    def kill_one() -> None:
        while len(replicas("Profiles")) < 2:  # the other one answers until this one is replaced
            attempt("/healthz")  # which may itself meet the one that was killed
        next(iter(replicas("Profiles").values())).kill()

    def deploy() -> None:
        other = running.serve.model_copy(update={"refresh_seconds": 0.3})
        changed = running.model_copy(update={"serve": other})
        serve.run(serving.bound(changed), name=serving.NAME, route_prefix="/")

    def attempt(path: str) -> int:
        try:
            return ask(port, path)[0]
        except (OSError, http.client.HTTPException):
            return 0

    def caller(numbers: range) -> None:
        for at in numbers:
            path = f"/v1/profiles/{quote(users[at % len(users)])}"
            if attempt(path) != 200 and attempt(path) != 200:
                lost.append(at)
            with lock:
                done.append(at)
                due = disturbances.get(len(done))
            if due is not None:
                due()

    port = running.serve.port
    before = replicas("Profiles")
    assert len(before) == 2
    lost: list[int] = []
    done: list[int] = []
    lock = threading.Lock()
    disturbances = {500: kill_one, 1_000: deploy, 2_000: kill_one}
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(caller, [range(at, 3_000, 4) for at in range(4)]))
    assert len(done) == 3_000
    assert not lost
    while len(replicas("Profiles")) != 2:  # the test's own time limit ends it if there never are
        assert ask(port, "/healthz")[0] == 200
    assert not set(replicas("Profiles")) & set(before)


def test_a_killed_encoder_is_missed_at_readyz_and_look_ups_go_on(running: Config, users: list[str]) -> None:
    port = running.serve.port
    until_ready(port)
    (encoder,) = replicas("Encoder").values()
    encoder.kill()
    detail = None
    while detail != "not ready: no encoder answered within 5 s":  # the test's own time limit ends it if nobody notices
        status, said = ask(port, "/readyz")
        detail = said.get("detail")
        assert status == (200 if detail is None else 503)
        assert ask(port, f"/v1/profiles/{quote(users[0])}")[0] == 200
    until_ready(port)
    status, found = ask(port, "/v1/embed", b'{"texts": ["Lovely tea"]}')
    assert (status, len(found["texts"][0]["vector"])) == (200, tiny.WIDTH)


def test_counts_and_limits_are_those_of_the_settings(config: Config) -> None:
    """An autoscaled encoder has room for what its look-up replicas let wait, and its looks."""
    from ray_profile.pipelines import serve as serving

    def with_(**told: Any) -> Any:
        return parse({"root": config.root, "serve": told})

    for settings, waiting in (
        (with_(), 16),
        (with_(replicas=4), 16),
        (with_(encoders={"min": 1, "max": 8}), 128),
        (with_(encoders=0), 16),
    ):
        assert serving.waiting(settings.serve) == waiting
    assert serving.bound(with_(encoders=0))._bound_deployment.init_args[1] is None
    application = serving.bound(with_(encoders={"min": 2, "max": 6}, replicas={"min": 2, "max": 3}))
    look_ups = application._bound_deployment
    (encoder,) = (each for each in look_ups.init_args if hasattr(each, "_bound_deployment"))
    for deployment, least, most in ((look_ups, 2, 3), (encoder._bound_deployment, 2, 6)):
        scaling = deployment._deployment_config.autoscaling_config
        assert (scaling.min_replicas, scaling.max_replicas) == (least, most)
        assert scaling.target_ongoing_requests < deployment.max_ongoing_requests
        assert deployment._deployment_config.graceful_shutdown_timeout_s > TIMEOUT_SECONDS
    assert encoder._bound_deployment.max_ongoing_requests == 3 * (16 * 3 + 1)


def test_without_tokens_it_is_for_this_machine_alone(config: Config) -> None:
    from ray_profile.pipelines import serve as serving

    other = config.model_copy(update={"serve": config.serve.model_copy(update={"host": "0.0.0.0"})})
    with pytest.raises(ConfigError, match=r"serve\.host = '0\.0\.0\.0' would answer anybody"):
        serving.start(other)


def test_a_cluster_is_never_served_without_tokens(config: Config, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_profile.pipelines import serve as serving

    with pytest.raises(ConfigError, match=r"sets no serve\.tokens"):
        serving.app({"config": str(shop.config)})
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match="the cluster that RAY_ADDRESS names would answer anybody"):
        serving.start(config)


def test_tls_that_serve_would_not_keep_is_refused(
    running: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Serve runs already without it, and where HAProxy answers."""
    from ray_profile.pipelines import serve as serving

    pair = certificates.made(tmp_path)
    told = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key), "port": free_port()}
    secured = running.model_copy(update={"serve": running.serve.model_copy(update=told)})
    with pytest.raises(ConfigError, match=r"was started without TLS; stop it"):
        serving.start(secured)
    monkeypatch.setattr(serving, "RAY_SERVE_ENABLE_HA_PROXY", True)
    with pytest.raises(ConfigError, match=r"RAY_SERVE_ENABLE_HA_PROXY starts knows no TLS"):
        serving.start(secured)
    with pytest.raises(ConfigError, match=r"RAY_SERVE_ENABLE_HA_PROXY is set, and HAProxy opens ports"):
        serving.start(running)  # it has no tokens


def test_what_is_not_there_is_named_before_anything_starts(config: Config, tmp_path: Path) -> None:
    from ray_profile.pipelines import serve as serving

    missing = config.model_copy(update={"serve": config.serve.model_copy(update={"tokens": str(tmp_path / "none")})})
    with pytest.raises(ConfigError, match="ray-profile token new"):
        serving.start(missing)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = config.model_copy(update={"serve": config.serve.model_copy(update={"port": port})})
        with pytest.raises(ConfigError, match=rf"serve\.port = {port} on 127\.0\.0\.1 cannot be used"):
            serving.start(busy)
    nowhere = config.model_copy(update={"root": str(tmp_path / "nowhere")})
    with pytest.raises(RootError, match="there is no root"):
        index(nowhere, local=True)


@pytest.mark.parametrize("secured", [True, False])
def test_the_command_serves_until_it_is_asked_to_end(
    config: Config, users: list[str], tmp_path: Path, secured: bool
) -> None:
    """As a person has it: a token is made, the server answers those who have it, by TLS alone or behind HAProxy, and
    SIGTERM ends it in good order."""
    import psutil

    own, pair = free_port(), certificates.made(tmp_path)
    file = tmp_path / "tokens.jsonl"
    shop = [f"--set=root={config.root}", "--set=encoder.dtype=float32", f"--set=serve.port={own}"]
    shop += [f"--set=serve.tokens={file}", f"--set=serve.audit={tmp_path}/audit.jsonl", "--set=serve.encoders=0"]
    if secured:
        shop += [f"--set=serve.tls_certificate={pair.certificate}", f"--set=serve.tls_key={pair.key}"]
    from_file = ["--config", str(_config_file(config))]
    command = [sys.executable, "-m", "ray_profile"]
    made = subprocess.run(
        [*command, "token", "new", "--name", "crm", "--scope", "profiles:read", *from_file, *shop],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    process = subprocess.Popen(
        [*command, "serve", *from_file, *shop], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        assert f"http{'s' * secured}://127.0.0.1:{own}" in process.stdout.readline()
        connection = http.client.HTTPConnection("127.0.0.1", own, timeout=30)
        if secured:
            trusted = ssl.create_default_context(cafile=pair.authority)
            connection = http.client.HTTPSConnection("127.0.0.1", own, timeout=30, context=trusted)
        for token, wanted in ((made.stdout.strip(), 200), ("rp_none", 401)):
            connection.request("GET", f"/v1/profiles/{quote(users[0])}", headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == wanted
        if secured:
            with pytest.raises((OSError, http.client.HTTPException)):
                ask(own, "/healthz")
        names = {each.name() for each in psutil.Process(process.pid).children(recursive=True)}
        assert ("haproxy" in names) != secured, "it stands before the replicas where there are tokens and no TLS"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[0])["caller"] == "crm"


def _config_file(config: Config) -> Path:
    """The shop's own file, beside its sources."""
    path = Path(next(iter(config.sources.values())).paths[0]).parent / "ray_profile.toml"
    assert path.is_file()
    return path

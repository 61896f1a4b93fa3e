"""`cluster/serve.yaml`: every key is one that Serve knows, the application is ours, and it deploys."""

from __future__ import annotations

import copy
import http.client
import json
import re
import socket
import time
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import polars as pl
import pytest
import tiny
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from pydantic import BaseModel
from ray._common.utils import import_attr
from ray.serve.schema import ServeDeploySchema

from ray_profile.pipelines import serve as serving
from ray_profile.pipelines.build import build
from ray_profile.pipelines.index import index
from ray_profile.serve import access
from ray_profile.serve.app import TIMEOUT_SECONDS
from ray_profile.serve_config import Span
from ray_profile.sources.simulate import Shop

SIGNER = ec.generate_private_key(ec.SECP256R1())
FILE = Path(serving.__file__).parents[2] / "cluster" / "serve.yaml"


def written() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def misspelt(model: type[BaseModel], data: Mapping[str, Any], at: str = "") -> list[str]:
    """The keys that a model does not have, however deep; `args` are our own."""
    found = []
    for key, value in data.items():
        field = model.model_fields.get(key)
        if field is None:
            found.append(f"{at}{key}")
            continue
        inner = serving.Arguments if key == "args" else _model(field.annotation)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping) and inner is not None:
                found += misspelt(inner, each, f"{at}{key}.")
    return found


def _model(annotation: Any) -> type[BaseModel] | None:
    """The model within Optional, Union and List."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((each for each in map(_model, typing.get_args(annotation)) if each is not None), None)


def _spoilt(data: Any) -> Iterator[tuple[str, Any]]:
    """The data with one key misspelt, for every key of it."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield key, {(f"{name}x" if name == key else name): each for name, each in data.items()}
            for name, inner in _spoilt(value):
                yield name, {**data, key: inner}
    elif isinstance(data, list):
        for at, value in enumerate(data):
            for name, inner in _spoilt(value):
                yield name, [*data[:at], inner, *data[at + 1 :]]


def test_every_key_is_one_that_serve_knows() -> None:
    data = written()
    ServeDeploySchema(**data)
    assert misspelt(ServeDeploySchema, data) == []
    tried = 0
    for key, spoilt in _spoilt(data):
        assert [each.rsplit(".", 1)[-1] for each in misspelt(ServeDeploySchema, spoilt)] == [f"{key}x"]
        tried += 1
    assert tried > 20


def test_what_is_commented_out_would_be_known_too() -> None:
    text, lines = re.subn(r"(?m)^( *)# (\w+: [^ ].*[\w}])$", r"\1\2", FILE.read_text(encoding="utf-8"))
    assert lines == 3
    data = yaml.safe_load(text)
    ServeDeploySchema(**data)
    assert misspelt(ServeDeploySchema, data) == []
    assert data["applications"][0]["deployments"][1]["ray_actor_options"]["num_gpus"] == 1


def test_it_names_our_application_and_its_deployments(shop: Shop, tmp_path: Path) -> None:
    """And all of them scale, and have longer for what is under way than a request may take."""
    (said,) = written()["applications"]
    assert import_attr(said["import_path"]) is serving.app
    assert said["name"] == serving.NAME
    arguments = serving.Arguments(**said["args"])
    config = serving.load(shop.config, [*arguments.overrides, f"serve.tokens={tmp_path}/tokens"])
    for counts in (config.serve.replicas, config.serve.encoders):
        assert isinstance(counts, Span)
        assert counts.min < counts.max
    application = serving.bound(config)
    look_ups = application._bound_deployment
    (encoder,) = (each._bound_deployment for each in look_ups.init_args if hasattr(each, "_bound_deployment"))
    assert [each["name"] for each in said["deployments"]] == [look_ups.name, encoder.name]
    for each in said["deployments"]:
        assert each["graceful_shutdown_timeout_s"] > TIMEOUT_SECONDS
        assert not {"num_replicas", "autoscaling_config", "max_ongoing_requests"} & set(each), "the overrides say it"
    assert written()["http_options"]["request_timeout_s"] > TIMEOUT_SECONDS


@pytest.mark.ray
def test_it_deploys_and_answers_whoever_has_a_token(shop: Shop, tmp_path: Path, ray_here: None) -> None:  # noqa: ARG001
    """By Serve's own API, as `serve deploy` hands it over, on this machine."""
    from ray import serve
    from ray.serve.context import _get_global_client

    root, tokens = tmp_path / "root", tmp_path / "tokens.jsonl"
    config = tiny.config_of(shop, root)
    build(config, local=True, clock=tiny.CLOCK)
    index(config, local=True)
    token = access.made(tokens, "crm", ("profiles:read", "embed"), None, None, access.now_utc())
    told = copy.deepcopy(written())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told["http_options"] |= {"host": "127.0.0.1", "port": port}
    said = told["applications"][0]["args"]
    own = {"root": root, "encoder.dtype": "float32", "serve.tokens": tokens, "serve.audit": tmp_path / "audit.jsonl"}
    said["config"] = str(shop.config)
    key = {**ECAlgorithm.to_jwk(SIGNER.public_key(), as_dict=True), "kid": "k"}
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [key]}))
    own |= {"serve.jwt.jwks": tmp_path / "jwks.json", "serve.jwt.issuer": "id", "serve.jwt.audience": "profiles"}
    said["overrides"] += [f"{name}={value}" for name, value in own.items()]
    claims = {"iss": "id", "aud": "profiles", "sub": "s", "scope": "profiles:read", "exp": time.time() + 600}
    foreign = jwt.encode(claims, SIGNER, "ES256", {"kid": "k"})
    wrote = pl.concat([pl.read_ndjson(path) for path in sorted(shop.config.parent.glob("reviews-*.jsonl.gz"))])
    user = quote(str(wrote["user_id"][0]))

    def ask(path: str, token: str | None, body: bytes | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        found = answer.status, json.loads(answer.read())
        connection.close()
        return found

    plain = copy.deepcopy(told)
    plain["applications"][0]["args"]["overrides"].append(f"serve.tls_certificate={tmp_path}/server.pem")
    schema = ServeDeploySchema(**told)
    serve.start(http_options=schema.http_options.model_dump())
    try:
        client = _get_global_client()
        assert client is not None
        client.deploy_apps(ServeDeploySchema(**plain))
        while (refused := serve.status().applications.get(serving.NAME)) is None or refused.status == "DEPLOYING":
            pass  # the test's own time limit ends it
        assert refused.status == "DEPLOY_FAILED"
        assert "serve.tls_certificate is set, and the Serve of this cluster was started without TLS" in refused.message
        client.deploy_apps(schema, _blocking=True)
        while ask("/readyz", None)[0] != 200:  # the test's own time limit ends it if it never is
            pass
        status, profile = ask(f"/v1/profiles/{user}", token)
        assert status == 200
        assert profile["rows"] > 0
        assert ask(f"/v1/profiles/{user}", None)[0] == 401
        assert ask(f"/v1/profiles/{user}", foreign)[0] == 200
        assert ask(f"/v1/profiles/{user}", foreign[:-9])[0] == 401
        status, found = ask("/v1/embed", token, b'{"texts": ["Lovely tea"]}')
        assert (status, len(found["texts"][0]["vector"])) == (200, tiny.WIDTH)
        running = serve.status().applications[serving.NAME]
        assert {name: each.status for name, each in running.deployments.items()} == {
            "Profiles": "HEALTHY", "Encoder": "HEALTHY",
        }  # fmt: skip
        settled = client.get_serve_details()["applications"][serving.NAME]["deployments"]
        for name, most, at_once in (("Profiles", 8, 48 + 32), ("Encoder", 4, (32 + 1) * 8)):
            found = settled[name]["deployment_config"]
            assert found["autoscaling_config"]["max_replicas"] == most
            assert (found["max_ongoing_requests"], found["graceful_shutdown_timeout_s"]) == (at_once, 40)
    finally:
        serve.shutdown()

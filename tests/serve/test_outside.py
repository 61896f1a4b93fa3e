"""JWTs of an outside issuer: real keys and signatures, a real server of the keys, and the routes they open."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import certificates
import hypothesis
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from ray_profile.config import parse
from ray_profile.errors import ConfigError
from ray_profile.serve import jwks
from ray_profile.serve.access import Caller
from ray_profile.serve.outside import Outside
from ray_profile.serve_config import Jwt

ISSUER, AUDIENCE = "https://id.example.com/", "profiles"
KEYS: dict[str, tuple[str, Any, Any]] = {
    "rsa": ("RS256", rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "ec": ("ES256", ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "ed": ("EdDSA", ed25519.Ed25519PrivateKey.generate(), OKPAlgorithm),
}
STRANGER = rsa.generate_private_key(65537, 2048)


def public(*names: str, **more: Any) -> bytes:
    """The JWKS of some keys."""
    keys = [
        {**KEYS[name][2].to_jwk(KEYS[name][1].public_key(), as_dict=True), "kid": name, "use": "sig", **more}
        for name in names
    ]
    return json.dumps({"keys": keys}).encode()


def signed(kid: str = "rsa", key: Any = None, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token that is good in all that is not told otherwise; a claim of None is left out."""
    now = int(time.time())
    told = {"iss": ISSUER, "aud": AUDIENCE, "sub": "search", "scope": "profiles:read", "exp": now + 600, **claims}
    told = {name: value for name, value in told.items() if value is not None}
    algorithm, own, _ = KEYS.get(kid, KEYS["rsa"])
    headers = {name: value for name, value in {"kid": kid, **(header or {})}.items() if value is not None}
    return jwt.encode(told, key or own, algorithm, headers)


def settings(place: str, **more: Any) -> Jwt:
    return Jwt(jwks=place, issuer=ISSUER, audience=AUDIENCE, **more)


@pytest.fixture
def issuer(tmp_path: Path) -> Outside:
    """One whose keys lie in a file, read."""
    return reading(tmp_path)


def reading(folder: Path, document: bytes = b"", **more: Any) -> Outside:
    path = folder / "jwks.json"
    path.write_bytes(document or public(*KEYS))
    made = Outside.of(settings(str(path), **more))
    assert asyncio.run(made.keys.learn("rsa"))
    return made


@pytest.mark.parametrize("kid", KEYS)
def test_a_token_that_the_issuer_signed_is_its_subject_s(issuer: Outside, kid: str) -> None:
    token = signed(kid, exp=2_000_000_000, scope="profiles:read why:read openid admin")
    expected = Caller("jwt:search", frozenset({"profiles:read", "why:read"}), None, 2_000_000_030.0)
    assert [issuer.caller(token), issuer.caller(token)] == [expected, expected]
    assert issuer.caller(signed(kid, aud=["other", AUDIENCE])) is not None


NOW = time.time()


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "other"},
        {"aud": None},
        {"iss": "https://id.example.com"},
        {"iss": None},
        {"exp": None},
        {"exp": NOW - 60},
        {"exp": float("inf")},
        {"exp": "soon"},
        {"nbf": NOW + 3600},
        {"iat": NOW + 3600},
        {"sub": None},
        {"sub": " "},
        {"sub": "\ud800"},
        {"sub": "x" * 501},
        {"key": STRANGER},
        {"kid": "unknown"},
        {"header": {"kid": None}},
        {"header": {"crit": ["x"], "x": 1}},
        {"header": {"b64": False, "crit": ["b64"]}},
    ],
    ids=str,
)
def test_whatever_is_not_as_it_should_be_opens_nothing(issuer: Outside, claims: dict[str, Any]) -> None:
    assert issuer.caller(signed()) is not None
    token = signed(**claims)
    assert [issuer.caller(token), issuer.caller(token)] == [None, None]


def test_what_is_not_signed_with_a_private_key_opens_nothing(issuer: Outside) -> None:
    """`none`, and HS256 with the public key as its secret: the two ways by which readers of JWTs were fooled."""
    pem = (
        KEYS["rsa"][1]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    for algorithm in ("none", "None", "nOnE", ""):
        assert issuer.caller(_by_hand({"alg": algorithm, "kid": "rsa"}, _claims(), b"")) is None
    for secret in (pem, pem.strip(), public("rsa"), b""):
        header = {"alg": "HS256", "kid": "rsa"}
        assert issuer.caller(_by_hand(header, _claims(), secret)) is None
    whole = signed()
    head, body, signature = whole.split(".")
    other = signed(sub="admin").split(".")[1]
    for token in (f"{head}.{other}.{signature}", f"{head}.{body}.", f"{head}.{body}", whole + "A", "rp_" + whole):
        assert issuer.caller(token) is None


def test_a_token_that_has_not_begun_opens_when_it_has(issuer: Outside) -> None:
    """A refusal is not remembered."""
    begins = int(time.time()) + 31
    token = signed(nbf=begins)
    assert issuer.caller(token) is None
    while issuer.caller(token) is None:  # clocks may differ by 30 s, so that it begins in one; the test's limit ends it
        threading.Event().wait(0.05)
    assert time.time() >= begins - 30


@hypothesis.settings(deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(st.binary(max_size=30), min_size=3, max_size=3)))
def test_anything_may_be_sent_as_a_token(tmp_path_factory: pytest.TempPathFactory, said: str | list[bytes]) -> None:
    issuer = _ISSUERS.setdefault("any", None) or reading(tmp_path_factory.mktemp("any"))
    _ISSUERS["any"] = issuer
    token = said if isinstance(said, str) else ".".join(_url(part) for part in said)
    assert issuer.caller(token) is None
    deep = ".".join([_url(b'{"alg":"RS256","kid":' + b"[" * 3_000), "e30", "AA"])
    assert issuer.caller(deep) is None
    assert issuer.caller(signed(sub="x" * 10_000)) is None


_ISSUERS: dict[str, Any] = {}


def test_the_issuer_s_words_become_our_scopes(tmp_path: Path) -> None:
    words = {"reader": "profiles:read", "analyst": ["why:read", "segments:read"], "boss": "admin"}
    mapped = reading(tmp_path, scopes=words, scope_claim="realm_access.roles", name_claim="azp", rate=5.0)
    token = signed(realm_access={"roles": ["reader", "analyst", "embed", 7]}, azp="crm")
    found = mapped.caller(token)
    assert found is not None
    assert (found.name, found.rate) == ("jwt:crm", 5.0)
    assert found.scopes == {"profiles:read", "why:read", "segments:read"}
    boss = mapped.caller(signed(realm_access={"roles": ["boss"]}, azp="crm"))
    assert boss is not None
    boss.insist("embed")
    for realm in (None, {}, {"roles": None}, {"roles": 7}, "roles", ["roles"]):
        nothing = mapped.caller(signed(realm_access=realm, azp="crm"))
        assert nothing is not None
        assert nothing.scopes == frozenset()
    dotted = reading(tmp_path, scope_claim="https://shop.example/roles")
    found = dotted.caller(signed(**{"https://shop.example/roles": ["embed"]}))
    assert found is not None
    assert found.scopes == {"embed"}


class Keys:
    """A server of keys, whose answer can be changed and whose requests are counted."""

    def __init__(self) -> None:
        self.body, self.status, self.asked = public("rsa"), 200, 0
        self.hold, self.here = threading.Event(), threading.Event()
        self.hold.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                outer.here.set()
                outer.hold.wait(60)
                self.send_response(outer.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/keys"


@pytest.fixture
def keys() -> Iterator[Keys]:
    made = Keys()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.hold.set()
    made.server.shutdown()
    thread.join()
    made.server.server_close()


class Clock:
    """One that a test moves."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def following(keys: Keys) -> tuple[Outside, Clock]:
    """An issuer at an address, and its clock."""
    clock, told = Clock(), settings(keys.address)
    fetch = jwks.fetch_of(told.jwks)
    return Outside(told, jwks.KeySet(fetch, told.refresh_seconds, told.keep_seconds, clock)), clock


def test_a_new_key_is_found_and_an_old_one_forgotten(keys: Keys) -> None:
    issuer, clock = following(keys)

    async def known(token: str) -> bool:
        await issuer.learn(token)
        return issuer.caller(token) is not None

    async def all_at_once() -> None:
        tokens = [signed("rsa", sub=f"s{at}") for at in range(20)]
        assert all(await asyncio.gather(*map(known, tokens)))
        assert keys.asked == 1, "twenty that miss the same key wait for one answer"
        keys.body = public("ec")
        assert not await known(signed("ec"))
        assert not any([await known(signed("ec", header={"kid": f"x{at}"})) for at in range(50)])
        assert keys.asked == 1, "strangers cannot have the issuer asked as often as they like"
        clock.now += jwks.AGAIN_SECONDS
        assert await known(signed("ec"))
        assert keys.asked == 2
        assert issuer.caller(tokens[0]) is None, "a key that was withdrawn opens nothing, remembered or not"

    asyncio.run(all_at_once())


def test_an_issuer_that_is_away_lets_in_whom_it_did_before_for_a_while(keys: Keys) -> None:
    issuer, clock = following(keys)
    old, new = signed("rsa"), signed("ec")

    async def refused(**change: Any) -> None:
        for name, value in change.items():
            setattr(keys, name, value)
        clock.now += jwks.AGAIN_SECONDS
        issuer.keys._away = False  # as if this were the first that is noticed of it
        assert not await issuer.learn(new)
        assert issuer.caller(new) is None
        assert issuer.caller(old) is not None

    async def hour() -> None:
        assert await issuer.learn(old)
        both = public("rsa", "ec")
        await refused(body=both, status=500)
        await refused(body=both, status=302)
        await refused(status=200, body=b"[]")
        await refused(body=b'{"keys": []}')
        await refused(body=b"<html>")
        await refused(body=b"[" * 100_000)
        await refused(body=both + b" " * jwks.MAX_BYTES)
        asked = keys.asked
        assert not await issuer.learn(new), "while it is known to be away nobody waits for it"
        assert keys.asked == asked
        clock.now = 1_000 + settings("x").keep_seconds
        assert issuer.caller(old) is None

    asyncio.run(hour())


def test_an_issuer_that_hangs_holds_up_nothing_else(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.5)
    issuer, clock = following(keys)
    old, new = signed("rsa"), signed("ec")

    async def meanwhile() -> None:
        assert await issuer.learn(old)
        keys.hold.clear()
        keys.here.clear()
        clock.now += jwks.AGAIN_SECONDS
        waiting = asyncio.create_task(issuer.learn(new))
        assert await asyncio.to_thread(keys.here.wait, 20)
        assert issuer.caller(old) is not None
        assert not waiting.done(), "the loop went on while the issuer was waited for"
        assert not await waiting
        assert not await issuer.learn(new)

    asyncio.run(meanwhile())


def test_keys_are_followed_without_anybody_asking(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a start at which the issuer was away."""
    monkeypatch.setattr(jwks, "AGAIN_SECONDS", 0.01)
    issuer, _ = following(keys)
    keys.status = 503

    async def follow() -> None:
        task = asyncio.create_task(issuer.keys.follow())
        while keys.asked < 2:
            await asyncio.sleep(0.01)
        assert issuer.caller(signed()) is None
        keys.status = 200
        while issuer.caller(signed()) is None:  # the test's own time limit ends it if it never is
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(follow())


def test_an_issuer_is_believed_by_its_certificate_alone(keys: Keys, tmp_path: Path) -> None:
    """Over TLS, in a process that trusts its authority and in one that does not."""
    pair = certificates.made(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    keys.server.socket = context.wrap_socket(keys.server.socket, server_side=True)
    address = keys.address.replace("http:", "https:")
    script = (
        "import asyncio; from ray_profile.serve import jwks; "
        f"print(sorted(jwks.keys_of(asyncio.run(jwks.fetch_of({address!r})()))))"
    )
    told = {"capture_output": True, "text": True, "timeout": 60}
    trusting = {**os.environ, "SSL_CERT_FILE": str(pair.authority), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", script], env=trusting, **told)  # type: ignore[call-overload]
    assert done.stdout.strip() == "['rsa']", done.stderr
    issuer = Outside(settings(address), jwks.KeySet(jwks.fetch_of(address), 300, 3600))
    assert not asyncio.run(issuer.keys.learn("rsa"))
    assert issuer.caller(signed()) is None


def test_keys_that_do_not_sign_are_left_out() -> None:
    secret = {"kty": "oct", "kid": "secret", "k": _url(b"s" * 32)}
    mixed = json.loads(public("rsa"))["keys"] + json.loads(public("ec", use="enc"))["keys"] + [secret, {"kty": "odd"}]
    mixed += json.loads(public("ed", kid=["ed"]))["keys"]
    assert set(jwks.keys_of(json.dumps({"keys": mixed}).encode())) == {"rsa"}
    for useless in ([secret], [], [{**secret, "alg": "RS256"}], json.loads(public("rsa", kid=""))["keys"]):
        with pytest.raises(ValueError, match=r"no key|no JWKS"):
            jwks.keys_of(json.dumps({"keys": useless}).encode())


@pytest.mark.parametrize("place", ["http://id.example.com/keys", "file:///etc/keys", "ftp://127.0.0.1/keys", "http://"])
def test_keys_come_from_where_nobody_can_change_them_on_the_way(place: str) -> None:
    told = {"root": "x", "serve": {"jwt": {"jwks": place, "issuer": ISSUER, "audience": AUDIENCE}}}
    with pytest.raises(ConfigError, match=r"serve\.jwt\.jwks = .*over https://"):
        parse(told)
    for good in ("https://id.example.com/keys", "http://localhost:80/keys", "http://[::1]/keys", "keys.json"):
        assert settings(good).jwks == good


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"jwks '.*absent' cannot be used .*save the issuer's JWKS there"):
        Outside.of(settings(str(tmp_path / "absent")))
    (tmp_path / "keys").write_text("{}")
    with pytest.raises(ConfigError, match=r"did not contain any keys.*save the issuer's"):
        Outside.of(settings(str(tmp_path / "keys")))
    (tmp_path / "keys").write_bytes(public("rsa"))
    with pytest.raises(ConfigError, match=r"serve\.jwt\.scopes\.reader names 'profile:read', which is no scope"):
        Outside.of(settings(str(tmp_path / "keys"), scopes={"reader": "profile:read"}))
    with pytest.raises(ConfigError, match=r"unknown key 'serve\.jwt\.audiance'; did you mean 'serve\.jwt\.audience'"):
        parse({"root": "x", "serve": {"jwt": {"jwks": "k", "issuer": ISSUER, "audience": "a", "audiance": "a"}}})
    with pytest.raises(ConfigError, match=r"keep_seconds = 60: keys would end before the next look at .* = 300"):
        parse({"root": "x", "serve": {"jwt": {"jwks": "k", "issuer": ISSUER, "audience": "a", "keep_seconds": 60}}})


def test_routes_open_to_what_the_token_names(server: Any, keys: Keys, user: str) -> None:
    """Over the running application, beside a token of our own: the first request finds the keys."""
    ours, issuer = server.service.issuers, following(keys)[0]
    server.service.issuers = (*ours, issuer)
    try:
        path = f"/v1/profiles/{user}"
        assert server.ask("GET", path, token=signed())[0] == 200
        assert json.loads((server.folder / "audit.jsonl").read_text().splitlines()[-1])["caller"] == "jwt:search"
        assert server.ask("GET", f"{path}/why?attribute=tags", token=signed())[0] == 403
        assert server.ask("GET", path)[0] == 200, "our own tokens go on"
        refusals = [
            server.ask("GET", path, token=token)
            for token in (None, "x", "rp_x", signed(exp=NOW - 60), signed(aud="x"), signed(key=STRANGER), signed("ec"))
        ]
        assert {(status, body) for status, _, body in refusals} == {(401, refusals[0][2])}
        assert keys.asked == 1
    finally:
        server.service.issuers = ours


def _claims() -> dict[str, Any]:
    return jwt.decode(signed(), options={"verify_signature": False})


def _by_hand(header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    """What no honest library writes."""
    content = f"{_url(json.dumps(header).encode())}.{_url(json.dumps(claims).encode())}"
    signature = hmac.new(secret, content.encode(), hashlib.sha256).digest() if header["alg"] == "HS256" else b""
    return f"{content}.{_url(signature)}"


def _url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

"""The HTTP interface on a real server: what is asked for comes back, and whatever is sent, never a 500."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_profile.pipelines.build import build
from ray_profile.pipelines.lookup import profile_of
from ray_profile.serve import access, app
from ray_profile.serve.app import MAX_BODY
from ray_profile.serve.reasons import ATTRIBUTES, NAMED
from ray_profile.sources.redact import bucket_of, bucket_of_one
from ray_profile.sources.simulate import Shop
from ray_profile.store.index import Index, current
from ray_profile.store.root import Root


def test_the_profile_is_what_show_shows(server: Any, user: str) -> None:
    found = server.get(f"/v1/profiles/{quote(user)}")
    shown = json.loads(json.dumps(profile_of(server.config, user), default=lambda moment: moment.isoformat()))
    assert found["tags"]
    for name, value in found.items():
        assert _without_evidence(shown[name]) == value, name
    assert set(shown) - set(found) == {"embedding", "text_vector"}


def test_every_attribute_carries_the_evidence_that_show_shows(server: Any, user: str) -> None:
    shown = json.loads(json.dumps(profile_of(server.config, user), default=lambda moment: moment.isoformat()))
    seen = 0
    for attribute, key in NAMED.items():
        for entry in shown[attribute]:
            query = f"attribute={attribute}&value={quote(entry[key])}"
            found = server.get(f"/v1/profiles/{quote(user)}/why?{query}")
            assert found["evidence"] == entry["evidence"]
            assert found["entry"] == _without_evidence(entry)
            seen += len(found["evidence"])
        assert set(server.get(f"/v1/profiles/{quote(user)}/why?attribute={attribute}")["evidence"]) == {
            entry[key] for entry in shown[attribute]
        }
    felt = server.get(f"/v1/profiles/{quote(user)}/why?attribute=sentiment")
    assert felt["evidence"] == shown["sentiment"]["evidence"]
    tag = shown["tags"][0]["tag"]
    assert server.get(f"/v1/profiles/{quote(user)}/why?tag={quote(tag)}")["entry"]["tag"] == tag
    assert seen > 10


def test_some_fields_alone(server: Any, user: str) -> None:
    whole = server.get(f"/v1/profiles/{quote(user)}")
    some = server.get(f"/v1/profiles/{quote(user)}?fields=sentiment,tags")
    assert some == {name: whole[name] for name in ("user_id", "as_of", "sentiment", "tags")}
    status, _, body = server.ask("GET", f"/v1/profiles/{quote(user)}?fields=embedding")
    assert (status, "is no field of a profile" in json.loads(body)["detail"]) == (422, True)


def test_what_has_not_changed_is_not_sent_again(server: Any, user: str) -> None:
    path = f"/v1/profiles/{quote(user)}"
    _, headers, _ = server.ask("GET", path)
    tag = headers["etag"]
    status, again, body = server.ask("GET", path, If_None_Match=f'"x", {tag}')
    assert (status, again["etag"], body) == (304, tag, b"")
    assert server.ask("GET", path, If_None_Match='"x"')[0] == 200


def test_many_at_once_keep_their_order_and_name_the_missing(server: Any, user: str) -> None:
    users = [user, "nobody", user, ""]
    status, _, body = server.ask("POST", "/v1/profiles:batch", json.dumps({"users": users}).encode())
    found = json.loads(body)
    assert status == 200
    assert found["missing"] == ["nobody", ""]
    assert [each and each["user_id"] for each in found["profiles"]] == [
        found["profiles"][0]["user_id"], None, found["profiles"][0]["user_id"], None,
    ]  # fmt: skip
    assert server.ask("POST", "/v1/profiles:batch", b'{"users": []}')[0] == 200
    for bad in ({"users": ["a"] * 1001}, {"users": "a"}, {"users": [1]}, {"people": []}, []):
        status, headers, body = server.ask("POST", "/v1/profiles:batch", json.dumps(bad).encode())
        assert (status, headers["content-type"]) == (422, "application/problem+json"), bad


ROUTES = [
    "/v1/profiles/{}",
    "/v1/profiles/{}/why?tag=tea",
    "/v1/profiles/{}/why?attribute=brands",
    "/v1/users/{}/similar",
    "/v1/users/{}/items",
    "/v1/items/{}/similar",
    "/v1/tags?{}",
]


@pytest.mark.parametrize("route", [*ROUTES, "batch"])
def test_every_route_wants_a_token_of_its_scope(server: Any, user: str, route: str) -> None:
    """And says of somebody who exists what it says of somebody who does not."""

    def answer(who: str, token: str | None) -> tuple[int, Any]:
        if route == "batch":
            status, _, body = server.ask("POST", "/v1/profiles:batch", json.dumps({"users": [who]}).encode(), token)
        else:
            status, _, body = server.ask("GET", route.format(quote(who)), None, token)
        return status, body

    for token, status in ((None, 401), ("rp_wrong", 401), (server.other, 403)):
        assert answer(user, token)[0] == status
        assert answer(user, token) == answer("nobody at all", token)


def test_nothing_that_is_sent_is_read_before_the_token(server: Any) -> None:
    """Every route says 401 and nothing else, also of what it could not read."""
    described = json.loads(server.ask("GET", "/v1/openapi.json", token=None)[2])
    for path, methods in described["paths"].items():
        for method in methods:
            if path.startswith("/v1/"):
                status, headers, _ = server.ask(method.upper(), path.replace("{user}", "x"), b"{", None)
                assert (status, headers["content-type"]) == (401, "application/problem+json"), path


def test_a_body_without_a_declared_length_is_measured_too(server: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}
    chunks = iter([b" " * (1 << 20)] * (MAX_BODY // (1 << 20) + 1))
    connection.request("POST", "/v1/profiles:batch", chunks, headers, encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["status"]) == (413, 413)


def test_a_fault_of_ours_is_told_without_what_it_is(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: list[str]) -> Any:
        raise RuntimeError("the secret of u-1001")

    whole, server.service.embed = server.service.embed, broken
    try:
        status, headers, body = server.ask("POST", "/v1/embed", b'{"texts": ["a"]}')
    finally:
        server.service.embed = whole
    assert (status, headers["content-type"]) == (500, "application/problem+json")
    assert b"secret" not in body
    assert "POST /v1/embed" in caplog.text
    assert server.ask("GET", "/healthz")[0] == 200


def test_an_id_may_hold_what_paths_are_made_of(server: Any, monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    name = server.service.name(user, False)
    monkeypatch.setattr(type(server.service), "name", lambda _, asked, __: name if asked == "a/b c?#" else None)
    assert server.get(f"/v1/profiles/{quote('a/b c?#', safe='')}")["user_id"] == name
    assert server.get(f"/v1/profiles/{quote('a/b c?#', safe='')}/why?attribute=tags")["attribute"] == "tags"


def test_health_is_for_everybody_and_me_for_whom_it_is_about(server: Any) -> None:
    assert server.ask("GET", "/healthz", token=None)[0] == 200
    status, _, body = server.ask("GET", "/readyz", token=None)
    assert (status, json.loads(body)["profiles"]) == (200, server.service.index.manifest.profiles)
    assert server.get("/v1/me") == {"name": "search", "scopes": ["embed", "profiles:read", "segments:read", "why:read"]}


def test_a_replica_is_not_ready_while_something_is_missing(server: Any, user: str) -> None:
    """It says what, and look-ups go on."""
    server.service.waits_for = "the encoder does not answer yet"
    try:
        status, headers, body = server.ask("GET", "/readyz", token=None)
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body)["detail"] == "not ready: the encoder does not answer yet"
        assert server.ask("GET", f"/v1/profiles/{quote(user)}")[0] == 200
        assert server.ask("GET", "/healthz", token=None)[0] == 200
    finally:
        server.service.waits_for = None
    assert server.ask("GET", "/readyz", token=None)[0] == 200


def test_every_look_at_somebody_is_noted_without_what_was_seen(server: Any, user: str) -> None:
    log = server.folder / "audit.jsonl"
    before = len(log.read_text().splitlines())
    found = server.get(f"/v1/profiles/{quote(user)}")
    server.ask("POST", "/v1/profiles:batch", json.dumps({"users": [user, "nobody"]}).encode())
    server.ask("GET", f"/v1/profiles/{quote(user)}", token="rp_wrong")
    one, many = (json.loads(line) for line in log.read_text().splitlines()[before:])
    assert {**one, "at": ""} == {
        "at": "", "caller": "search", "route": "profiles", "users": [found["user_id"]], "found": 1,
    }  # fmt: skip
    assert (many["route"], many["found"], len(many["users"])) == ("profiles:batch", 1, 2)


def test_texts_become_what_build_would_make_of_them(server: Any) -> None:
    texts = ["Lovely tea", "茶香很浓", "<br>", "x" * 5_000, "Lovely tea"]
    status, _, body = server.ask("POST", "/v1/embed", json.dumps({"texts": texts}).encode())
    found = json.loads(body)["texts"]
    assert status == 200
    assert [len(each["vector"]) if each["vector"] else None for each in found] == [
        tiny.WIDTH,
        tiny.WIDTH,
        None,
        tiny.WIDTH,
        tiny.WIDTH,
    ]
    assert found[0] == found[4]
    assert found[2] == {"vector": None, "sentiment": None, "tags": None}
    assert sum(x * x for x in found[0]["vector"]) == pytest.approx(1, abs=0.01)
    assert server.ask("POST", "/v1/embed", b'{"texts": []}')[0] == 200
    for bad in ({"texts": ["a"] * 257}, {"texts": ["a" * 100_001]}, {"texts": "a"}, {"texts": ["a"], "k": 1}):
        assert server.ask("POST", "/v1/embed", json.dumps(bad).encode())[0] == 422, bad
    assert server.ask("POST", "/v1/embed", b'{"texts": ["\\ud800"]}')[0] == 422


def test_rows_to_compute_cost_what_texts_to_embed_cost(server: Any) -> None:
    """Ten of either are what a caller of five a second may send at once."""
    texts = [f"Lovely tea {at}" for at in range(10)]
    rows = [{"kind": "review", "ts": "2025-01-01", "text": text} for text in texts]
    for name, path, sent in (
        ("slow", "/v1/profiles:compute", {"rows": rows}),
        ("slower", "/v1/embed", {"texts": texts}),
    ):
        token = access.made(server.folder / "tokens", name, ["embed"], 5.0, None, access.now_utc())
        body = json.dumps(sent).encode()
        assert server.ask("POST", path, body, token)[0] == 200
        status, headers, _ = server.ask("POST", path, body, token)
        assert (status, int(headers["retry-after"])) == (429, 2)


def test_more_profiles_than_an_answer_holds_are_not_sent(
    server: Any, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_ANSWER", 10)
    body = json.dumps({"users": [user]}).encode()
    _insist_on_problem(server.ask("POST", "/v1/profiles:batch", body), 413)


def test_segments_are_counted_and_exports_have_a_scope_of_their_own(server: Any) -> None:
    asked = json.dumps({"predicate": "rows > 0"}).encode()
    status, _, body = server.ask("POST", "/v1/segments:count", asked)
    assert (status, json.loads(body)["count"]) == (200, server.service.index.manifest.profiles)
    noted, sampled = map(json.loads, (server.folder / "audit.jsonl").read_text().splitlines()[-2:])
    assert (noted["caller"], noted["route"]) == ("search", "segments:count rows > 0")
    assert sampled["users"] == json.loads(body)["sample"], "whom the answer named"
    assert server.ask("POST", "/v1/segments:export", asked)[0] == 403
    status, headers, body = server.ask("POST", "/v1/segments:export", asked, server.other)
    assert (status, headers["content-type"]) == (200, "text/csv; charset=utf-8")
    assert len(body.splitlines()) == 1 + server.service.index.manifest.profiles
    noted = json.loads((server.folder / "audit.jsonl").read_text().splitlines()[-1])
    assert (noted["caller"], noted["route"], noted["users"]) == ("other", "segments:export rows > 0", [])


def test_an_own_id_and_its_pseudonym_lead_to_the_same_profile(server: Any, user: str) -> None:
    found = server.get(f"/v1/profiles/{quote(user)}")
    assert found["user_id"] != user, "the simulated shop has a pseudonym key"
    assert server.get(f"/v1/profiles/{found['user_id']}?pseudonym=true") == found
    assert server.ask("GET", f"/v1/profiles/{found['user_id']}")[0] == 404


def test_buckets_are_those_of_the_tables() -> None:
    names = ["a", "书", "", "x" * 900]
    assert [bucket_of_one(name, 7) for name in names] == bucket_of(pl.Series(names), 7).to_list()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/profiles:batch", b"", 422),
        ("POST", "/v1/profiles:batch", b"{", 400),
        ("POST", "/v1/profiles:batch", b"\xff\xfe\x00", 400),
        ("POST", "/v1/profiles:batch", b'{"users": ["a"], "users": ["b"]}', 400),
        ("POST", "/v1/profiles:batch", b'{"users": NaN}', 400),
        ("POST", "/v1/profiles:batch", b'\xef\xbb\xbf{"users": []}', 400),
        ("POST", "/v1/profiles:batch", '{"users": []}'.encode("utf-16"), 400),
        ("POST", "/v1/profiles:batch", b'{"users": -Infinity}', 400),
        ("POST", "/v1/profiles:batch", b'{"users": ' + b"9" * 5_000 + b"}", 400),
        ("POST", "/v1/profiles:batch", b'{"users": ["\\ud800"]}', 422),
        ("POST", "/v1/profiles:batch", b'{"users": ["a\\u0000b"]}', 422),
        ("POST", "/v1/profiles:batch", b"[" * 100_000, 400),
        ("POST", "/v1/profiles:batch", b'{"users":' + b"[" * 900 + b"]" * 900 + b"}", 422),
        ("POST", "/v1/profiles:batch", b'{"users": ["' + b"a" * 100_000 + b'"]}', 422),
        ("POST", "/v1/profiles:batch", b" " * (MAX_BODY + 1), 413),
        ("POST", "/v1/profiles:compute", b'{"rows": [{"kind": "cart", "ts": "2025-01-01", "price": 1e999}]}', 422),
        ("POST", "/v1/profiles:compute", b'{"rows": [{"kind": "review", "ts": "1e9"}]}', 422),
        ("POST", "/v1/embed", b'{"texts": ["' + b"a" * 100_001 + b'"]}', 422),
        ("GET", "/v1/profiles/%00", None, 422),
        ("GET", "/v1/profiles/%ff%fe", None, 404),
        ("GET", "/v1/profiles/%zz%", None, 404),
        ("GET", "/v1/profiles/..%2f..%2f..%2fetc%2fpasswd", None, 404),
        ("GET", "/v1/profiles/" + "a" * 5_000, None, 422),
        ("GET", "/v1/profiles/" + "%41" * 10_000, None, 422),
        ("GET", "/v1/profiles/x?" + "&".join(f"a{at}=1" for at in range(5_000)), None, 404),
        ("GET", "/v1/profiles/x/why", None, 422),
        ("GET", "/v1/profiles/x/why?tag=a&attribute=tags", None, 422),
        ("GET", "/v1/profiles/x?pseudonym=perhaps", None, 422),
        ("GET", "/v2/profiles/x", None, 404),
        ("DELETE", "/v1/profiles/x", None, 405),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_answered_is_a_problem_and_no_traceback(
    server: Any, method: str, path: str, body: bytes | None, status: int
) -> None:
    _insist_on_problem(server.ask(method, path, body), status)
    assert server.ask("GET", "/healthz")[0] == 200


@pytest.mark.parametrize(
    "predicate",
    [
        "rows > 0; DROP TABLE self",
        "INSERT INTO self VALUES (1)",
        "COPY self TO '/tmp/stolen.csv'",
        "read_csv('/etc/passwd') IS NOT NULL",
        "EXISTS (SELECT * FROM self a, self b, self c, self d)",
        "rows IN (SELECT a.rows FROM self a JOIN self b ON 1 = 1)",
        "WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT 1 FROM t) SELECT 1",
        "repeat('a', 1000000000) = user_id",
        "NOT " * 400 + "1 = 1",
        "user_id = '" + "a" * 100_000 + "'",
        "1 = 1 --",
    ],
    ids=lambda value: value[:30],
)
def test_a_predicate_can_do_nothing_but_select_users(server: Any, predicate: str) -> None:
    for route in ("count", "export"):
        body = json.dumps({"predicate": predicate}).encode()
        token = server.other if route == "export" else ""
        _insist_on_problem(server.ask("POST", f"/v1/segments:{route}", body, token), 422)
    assert server.ask("GET", "/healthz")[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
def test_a_body_that_is_not_declared_as_json_is_not_read(server: Any, kind: str) -> None:
    _insist_on_problem(server.ask("POST", "/v1/profiles:batch", b'{"users": ["a"]}', Content_Type=kind), 415)
    body = b'{"users": ["a"]}'
    assert server.ask("POST", "/v1/profiles:batch", body, Content_Type="application/JSON; charset=utf-8")[0] == 200


def test_a_pile_of_headers_harms_nobody(server: Any) -> None:
    """Whether the server in front takes them or not: it says so, and goes on."""
    for headers in (
        {f"X{at}": "a" * 100 for at in range(1_000)},
        {"X": "a" * 1_000_000},
        {"If_None_Match": "," * 50_000},
        {"Accept": "\xff\xfe", "Cookie": ";" * 10_000},
    ):
        with suppress(http.client.HTTPException, ConnectionError):  # it may hang up
            assert server.ask("GET", "/v1/me", None, "", **headers)[0] in (200, 400, 431)
        assert server.ask("GET", "/healthz")[0] == 200


def _insist_on_problem(answer: tuple[int, Any, bytes], status: int) -> None:
    found, headers, text = answer
    assert (found, headers["content-type"]) == (status, "application/problem+json"), text
    said = json.loads(text)
    assert said["status"] == status
    assert said["detail"]
    assert b"Traceback" not in text


@settings(max_examples=60, deadline=None)
@given(who=st.text(max_size=40), attribute=st.one_of(st.sampled_from(ATTRIBUTES), st.text(max_size=10)))
def test_any_id_and_any_attribute_get_an_answer(server: Any, who: str, attribute: str) -> None:
    name = quote(who.encode("utf-8", "surrogatepass"), safe="")
    for path in (
        f"/v1/profiles/{name}",
        f"/v1/profiles/{name}/why?attribute={quote(attribute.encode('utf-8', 'replace'))}",
    ):
        assert server.ask("GET", path)[0] in (200, 404, 422)


def test_the_description_names_every_route_and_its_refusals(server: Any) -> None:
    described = json.loads(server.ask("GET", "/v1/openapi.json", token=None)[2])
    assert {"/v1/profiles/{user}", "/v1/profiles:batch", "/v1/profiles/{user}/why"} <= set(described["paths"])
    for path, methods in described["paths"].items():
        for method in methods.values():
            if path.startswith("/v1/profiles"):
                assert {"200", "401", "403", "422", "429"} <= set(method["responses"]), path
    tags = described["paths"]["/v1/profiles/{user}"]["get"]["responses"]["200"]["content"]["application/json"]
    assert tags["schema"]["properties"]["tags"]["items"]["properties"]["stance"] == {"type": ["string", "null"]}


def test_a_newer_index_is_swapped_in_and_no_answer_mixes_two(
    server: Any, shop: Shop, tmp_path: Path, user: str
) -> None:
    """Threads ask for many at once while the version changes: each answer is of one version, and none fails."""
    root = tmp_path / "root"
    shutil.copytree(server.config.root, root)
    config = tiny.config_of(shop, root)
    old = server.service.index
    build(config, local=True, refresh=True, clock=tiny.CLOCK)  # writes all profiles and, as the root has one, the index
    manifest = current(Root.existing(str(root)))
    assert manifest is not None
    assert manifest.version > old.version
    new = Index.open(Root.existing(str(root)), manifest, tmp_path)
    body = json.dumps({"users": [user] * 50}).encode()
    versions: list[int] = []
    mixed: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            status, _, found = server.ask("POST", "/v1/profiles:batch", body)
            told = json.loads(found)
            versions.append(told["version"])
            if status != 200 or len({each["statistics"] for each in told["profiles"]}) != 1:
                mixed.append(told)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for at in range(20):
            seen = len(versions)
            server.service.index = old if at % 2 else new
            while len(versions) < seen + 5 and not mixed:
                stop.wait(0.001)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        server.service.index = old
    assert not mixed
    assert set(versions) == {old.version, new.version}


def _without_evidence(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_evidence(each) for name, each in value.items() if name != "evidence"}
    return [_without_evidence(each) for each in value] if isinstance(value, list) else value

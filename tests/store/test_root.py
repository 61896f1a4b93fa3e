"""Making and opening roots, on a disk and on a real S3 server."""

from __future__ import annotations

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import seaweedfs

from ray_profile.errors import RootError, StorageError
from ray_profile.store.root import FACTS_FILE, Root, RootFacts, normal

FACTS = RootFacts(1, 16, "month", 90.0, None)


@pytest.fixture(params=["local", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root 一") if request.param == "local" else request.getfixturevalue("s3").fresh("root 一")


def settled(address: str, facts: RootFacts = FACTS) -> Root:
    """A root as it is just before its first commit."""
    root = Root.open(address, facts)
    root.settle()
    return root


def test_a_root_is_made_once_and_opened_after(address: str) -> None:
    with pytest.raises(RootError, match=r"no root at .*`ray-profile build`"):
        Root.existing(address)
    assert settled(address).facts == FACTS
    assert settled(address + "/").facts == FACTS
    assert Root.existing(address).facts == FACTS


def test_opening_fixes_nothing(address: str) -> None:
    Root.open(address, replace(FACTS, buckets=5)).create_json({}, "states", "_delta_log", f"{0:020}.json")
    assert not Root.exists(address)
    settled(address)
    assert Root.existing(address).facts == FACTS


@pytest.mark.parametrize(
    ("name", "value", "step"),
    [
        ("schema_version", 2, "release"),
        ("buckets", 32, "state.buckets = 16"),
        ("period", "week", 'state.period = "month"'),
        ("half_life_days", 30.0, "state.half_life_days = 90.0"),
        ("key_fingerprint", "abcdef", "privacy"),
    ],
)
def test_other_facts_are_an_error_that_names_both(tmp_path: Path, name: str, value: Any, step: str) -> None:
    late = Root.open(str(tmp_path), replace(FACTS, **{name: value}))
    settled(str(tmp_path))
    with pytest.raises(RootError, match=rf"{name} = ") as settling:
        late.settle()
    with pytest.raises(RootError, match=rf"{name} = .*{value!r}.*{step}.*new root") as raised:
        Root.open(str(tmp_path), replace(FACTS, **{name: value}))
    assert str(raised.value) == str(settling.value)
    assert repr(getattr(FACTS, name)) in str(raised.value)


def test_of_two_makers_one_wins_and_the_other_hears_of_it(address: str) -> None:
    def make(buckets: int) -> int | str:
        try:
            return settled(address, replace(FACTS, buckets=buckets)).facts.buckets
        except RootError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(1, 9)))
    won = Root.existing(address).facts.buckets
    assert made[won - 1] == won
    assert all(f"buckets = {won}" in str(each) for each in made if each != won)


def test_tables_without_facts_are_no_new_root(address: str) -> None:
    root = settled(address)
    for version in (0, 1):
        root.create_json({}, "states", "_delta_log", f"{version:020}.json")
    root.delete([FACTS_FILE])
    with pytest.raises(RootError, match=r"states table but no ray_profile\.json"):
        Root.open(address, FACTS)


@pytest.mark.parametrize(("body", "word"), [("{", "no valid JSON"), ("{}", "lacks"), ("[]", "lacks")])
def test_broken_facts_are_an_error(tmp_path: Path, body: str, word: str) -> None:
    (tmp_path / FACTS_FILE).write_text(body)
    with pytest.raises(RootError, match=word):
        Root.open(str(tmp_path), FACTS)


def test_json_is_created_once(address: str) -> None:
    root = Root.open(address, FACTS)
    assert root.create_json({"名": 1}, "waves", "a.json")
    assert not root.create_json({"名": 2}, "waves", "a.json")
    assert root.create_json({"名": 1}, "waves", "a.json")  # the same again: a first try whose answer was lost
    assert root.read_json("waves", "a.json") == {"名": 1}
    assert root.read_jsons(["waves/b.json", "waves/a.json"]) == [None, {"名": 1}]
    assert root.read_jsons([]) == []


def test_a_file_is_replaced_whole_by_bytes_or_by_a_local_file(address: str, tmp_path: Path) -> None:
    root = Root.bare(address)
    root.replace_json({"名": 1}, "models", "a.json")
    root.replace_json({"名": 2}, "models", "a.json")
    assert root.read_json("models", "a.json") == {"名": 2}
    (tmp_path / "local").write_bytes(b"x" * 3_000_000)
    for _ in range(2):
        root.replace(tmp_path / "local", "models/deep", "b")
        assert root.fs.cat_file(root.path("models/deep/b")) == b"x" * 3_000_000
    assert [listing.path for listing in root.list("models")] == ["models/a.json", "models/deep/b"]  # no draft is left
    assert not Root.exists(address)


def test_a_crash_while_replacing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root.bare(str(tmp_path))
    root.replace_json(1, "models", "a.json")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        root.replace_json(2, "models", "a.json")
    assert root.read_json("models", "a.json") == 1
    assert [listing.path for listing in root.list("models")] == ["models/a.json"]


def test_of_many_creators_one_wins(address: str) -> None:
    root = Root.open(address, FACTS)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda value: root.create_json(value, "waves", "a.json"), range(8)))
    assert sum(won) == 1
    assert root.read_json("waves", "a.json") == won.index(True)
    assert [listing.path for listing in root.list("waves")] == ["waves/a.json"]  # no draft is left


def test_a_crash_while_writing_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root.open(str(tmp_path), FACTS)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", die)
    with pytest.raises(KeyboardInterrupt):
        root.create_json({"a": 1}, "waves", "a.json")
    assert root.read_json("waves", "a.json") is None


def test_listing_and_deleting(address: str) -> None:
    root = Root.open(address, FACTS)
    assert root.list("waves") == []
    for name in ("b.json", "a.json"):
        root.create_json({}, "waves", name)
    root.create_json({}, "waves", ".hidden")
    root.create_json({}, "waves", "deep", "c.json")
    assert [listing.path for listing in root.list("waves")] == ["waves/a.json", "waves/b.json", "waves/deep/c.json"]
    assert {listing.size for listing in root.list("waves")} == {2}
    assert all(listing.modified.tzinfo is not None for listing in root.list())
    root.delete(["waves/a.json", "waves/never.json"])
    assert [listing.path for listing in root.list("waves")] == ["waves/b.json", "waves/deep/c.json"]


def test_a_root_travels_without_keys(address: str) -> None:
    root = settled(address)
    _ = root.fs, root.arrow_fs
    body = pickle.dumps(root)
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY", "no secret here")
    assert secret.encode() not in body
    assert pickle.loads(body).read_json(FACTS_FILE) == asdict(FACTS)
    assert secret not in json.dumps(root.storage_options)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("s3://b/p/", "s3://b/p"), ("s3://b//p", "s3://b/p"), ("s3://b", "s3://b"), ("file:///tmp/x/", "/tmp/x")],
)
def test_addresses_are_made_normal(written: str, meant: str) -> None:
    assert normal(written) == meant


def test_a_relative_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = Root.open("shop", FACTS)
    assert root.uri("states") == str(tmp_path / "shop" / "states")


@pytest.mark.parametrize(
    ("written", "word"),
    [
        ("gs://b/p", "s3://"),
        ("s3://", "no bucket"),
        (" ", "empty"),
        ("/tmp/a%20b", "escape"),
        ("s3://b/2024*", "pattern"),
    ],
)
def test_an_address_of_no_kind_is_refused(written: str, word: str) -> None:
    with pytest.raises(RootError, match=word):
        normal(written)


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file/root.*permissions"):
        settled(str(tmp_path / "file" / "root"), FACTS)


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_keys_are_a_storage_error(s3: seaweedfs.S3Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    address = s3.fresh()
    settled(address)
    monkeypatch.setenv(name, "wrong")
    for attempt in (
        lambda: Root.open(address, FACTS),
        lambda: Root.existing(address),
        lambda: Root.open(s3.fresh(), FACTS),
    ):
        with pytest.raises(StorageError, match=rf"{s3.bucket}.*Forbidden.*{name}"):
            attempt()


def test_no_keys_are_a_storage_error(s3: seaweedfs.S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match=r"credentials.*AWS_ACCESS_KEY_ID"):
        Root.open(s3.fresh(), FACTS)


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_a_storage_error() -> None:
    for attempt in (lambda: Root.open("s3://nowhere/root", FACTS), lambda: Root.existing("s3://nowhere/root")):
        with pytest.raises(StorageError, match=r"s3://nowhere/root.*bucket exists"):
            attempt()


def test_an_unreachable_store_is_a_storage_error(s3: seaweedfs.S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9.*AWS_ENDPOINT_URL"):
        Root.open(s3.fresh(), FACTS)


def test_plain_http_is_allowed_only_where_the_endpoint_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root("s3://b/p", FACTS)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert root.storage_options == {"AWS_REGION": "us-east-1"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://minio.shop")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert root.storage_options["AWS_ALLOW_HTTP"] == "false"
    assert root.storage_options["AWS_REGION"] == "eu-west-1"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.shop:9000")
    assert root.storage_options["AWS_ALLOW_HTTP"] == "true"

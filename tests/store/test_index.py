"""The serving index: every profile is found whole, in the version asked for, and nothing half-copied is opened."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seaweedfs import S3Server

from ray_profile.errors import RootError, StorageError
from ray_profile.store import index
from ray_profile.store.index import Index, Manifest, Part
from ray_profile.store.root import Root

WIDTH = 4


def profiles(users: list[str], said: str = "") -> pl.DataFrame:
    """As documents gives them; every third user has no vector."""
    vectors = [None if at % 3 == 2 else [float(at), 1.0, -1.0, 0.5] for at in range(len(users))]
    return pl.DataFrame(
        {
            "user_id": users,
            "json": [json.dumps({"user_id": user, "said": said}, ensure_ascii=False) for user in users],
            "why": [json.dumps({"tags": [user]}, ensure_ascii=False) for user in users],
            "vector": vectors,
        },
        schema={"user_id": pl.String, "json": pl.String, "why": pl.String, "vector": pl.List(pl.Float32)},
    )


def published(root: Root, version: int, users: list[str], said: str = "") -> Manifest:
    part = index.write_part(0, profiles(users, said), WIDTH, [f"file-{version}"], root)
    manifest = Manifest(version, WIDTH, 1, "digest", (part,))
    index.publish(root, manifest)
    return manifest


ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=700)


@settings(max_examples=30, deadline=None)
@given(users=st.lists(ids, unique=True, max_size=12))
def test_every_user_is_found_whatever_the_id(tmp_path_factory: pytest.TempPathFactory, users: list[str]) -> None:
    root = Root.bare(str(tmp_path_factory.mktemp("root")))
    opened = Index.open(root, published(root, 3, users), Path("unused"))
    for at, user in enumerate(users):
        found, why, vector = opened.get(0, user), opened.why(0, user), opened.vector(0, user)
        assert found is not None
        assert why is not None
        assert vector is not None
        assert json.loads(found) == {"user_id": user, "said": ""}
        assert json.loads(why) == {"tags": [user]}
        assert vector.tolist() == ([0.0] * WIDTH if at % 3 == 2 else [float(at), 1.0, -1.0, 0.5])
    assert opened.get(0, "nobody by this name") is None
    assert opened.get(7, users[0] if users else "x") is None
    listed = [user for names, _ in opened.vectors() for user in names]
    assert sorted(listed) == sorted(user for at, user in enumerate(users) if at % 3 != 2)
    assert all(rows.shape == (len(names), WIDTH) and rows.dtype == np.float16 for names, rows in opened.vectors())


def test_the_same_profiles_give_the_same_file(tmp_path: Path) -> None:
    root, other = Root.bare(str(tmp_path / "a")), Root.bare(str(tmp_path / "b"))
    users = [f"user-{at}" for at in range(500)]
    first = index.write_part(3, profiles(users), WIDTH, ["x"], root)
    shuffled = profiles(users).sample(fraction=1.0, shuffle=True, seed=1)
    vectors = dict(profiles(users).select("user_id", "vector").iter_rows())
    shuffled = shuffled.with_columns(
        pl.Series("vector", [vectors[user] for user in shuffled["user_id"]], dtype=pl.List(pl.Float32))
    )
    assert index.write_part(3, shuffled, WIDTH, ["x"], other) == first
    assert [entry.path for entry in root.list("index", "files")] == [f"index/files/{first.file}.mdb"]


def test_one_version_stays_readable_while_the_next_is_opened(tmp_path: Path) -> None:
    root = Root.bare(str(tmp_path))
    old = Index.open(root, published(root, 1, ["a", "b"], "old"), tmp_path)
    new = Index.open(root, published(root, 2, ["a", "c"], "new"), tmp_path)
    for opened, said, gone in ((old, "old", "c"), (new, "new", "b")):
        assert json.loads(opened.get(0, "a") or b"")["said"] == said
        assert opened.get(0, gone) is None
    assert index.current(root) == new.manifest


def test_versions_share_the_files_that_did_not_change(tmp_path: Path) -> None:
    """And a process that serves both has each file open once, which LMDB insists on."""
    root = Root.bare(str(tmp_path))
    first = published(root, 1, ["a"])
    second = published(root, 2, ["a"])
    assert first.parts[0].file == second.parts[0].file
    one, two = Index.open(root, first, tmp_path), Index.open(root, second, tmp_path)
    assert one.get(0, "a") == two.get(0, "a")


def test_old_versions_go_and_files_of_a_live_run_stay(tmp_path: Path) -> None:
    import os

    root = Root.bare(str(tmp_path))
    stray = index.write_part(0, profiles(["stray"]), WIDTH, [], root)
    for version in range(1, 5):
        published(root, version, [f"of-{version}"], str(version))
    names = sorted(entry.path for entry in root.list("index") if entry.path.endswith(".json"))
    assert names == [f"index/{version:020d}.json" for version in (3, 4)]
    files = {Path(entry.path).stem for entry in root.list("index", "files")}
    assert stray.file in files
    for entry in root.list("index", "files"):
        os.utime(root.path(entry.path), (0, 0))
    published(root, 5, ["of-5"], "5")
    files = {Path(entry.path).stem for entry in root.list("index", "files")}
    assert files == {part.file for version in (4, 5) for part in index.read(root, version).parts}


def test_a_version_that_is_not_whole_is_not_opened(tmp_path: Path) -> None:
    root = Root.bare(str(tmp_path))
    manifest = published(root, 1, ["a"])
    path = Path(root.path("index", "files", f"{manifest.parts[0].file}.mdb"))
    body = path.read_bytes()
    path.write_bytes(body[: len(body) // 2])
    with pytest.raises(StorageError, match="missing or cut"):
        Index.open(root, manifest, tmp_path)
    path.unlink()
    with pytest.raises(StorageError, match="ray-profile index"):
        Index.open(root, manifest, tmp_path)


def test_on_s3_files_are_copied_once_and_checked(s3: S3Server, tmp_path: Path) -> None:
    root = Root.bare(s3.fresh())
    first = published(root, 1, ["a", "书"], "old")
    opened = Index.open(root, first, tmp_path)
    assert json.loads(opened.get(0, "书") or b"")["said"] == "old"
    (copy,) = tmp_path.glob("*/*.mdb")
    stamp = copy.stat().st_mtime_ns
    Index.open(root, first, tmp_path)
    assert copy.stat().st_mtime_ns == stamp, "what is there is not fetched again"
    second = published(root, 2, ["a"], "new")
    newer = Index.open(root, second, tmp_path)
    assert [path.stem for path in tmp_path.glob("*/*.mdb")] == [second.parts[0].file], "old copies go"
    assert json.loads(opened.get(0, "书") or b"")["said"] == "old", "and whoever has one open keeps it"
    assert newer.get(0, "书") is None


def test_a_copy_that_is_cut_is_fetched_again_and_a_changed_one_refused(s3: S3Server, tmp_path: Path) -> None:
    root = Root.bare(s3.fresh())
    manifest = published(root, 1, ["a"])
    cut = tmp_path / "cut"
    Index.open(root, manifest, cut)
    (copy,) = cut.glob("*/*.mdb")
    other = tmp_path / "other" / copy.relative_to(cut)  # LMDB knows the first path as open already
    other.parent.mkdir(parents=True)
    other.write_bytes(b"")
    assert Index.open(root, manifest, tmp_path / "other").get(0, "a") is not None
    root.replace(b"x" * manifest.parts[0].size, "index", "files", f"{manifest.parts[0].file}.mdb")
    with pytest.raises(StorageError, match="is not what it was"):
        Index.open(root, manifest, tmp_path / "third")
    assert not list((tmp_path / "third").glob("*/*.mdb"))
    assert not list((tmp_path / "third").glob("*/*.draft"))


def test_what_is_no_manifest_is_named(tmp_path: Path) -> None:
    root = Root.bare(str(tmp_path))
    assert index.current(root) is None
    with pytest.raises(RootError, match="no index of version 7"):
        index.read(root, 7)
    root.create_json({"version": 7}, "index", f"{7:020d}.json")
    with pytest.raises(RootError, match="no manifest of an index"):
        index.current(root)
    assert Manifest.of(Manifest(1, 2, 3, None, (Part(0, "f", 1, 1, ("x",)),)).to_json(), "here").parts[0].made_of == (
        "x",
    )

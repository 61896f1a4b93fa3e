"""The serving index: every profile is found whole, in the version asked for, and nothing half-copied is opened."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seaweedfs import S3Server

from ray_profile.errors import RootError, StorageError
from ray_profile.store import copies, index
from ray_profile.store.copies import File
from ray_profile.store.index import Index, Manifest, Part
from ray_profile.store.nearest import SCANNED
from ray_profile.store.root import Root
from ray_profile.store.shelf import nearest

WIDTH = 4


def profiles(users: list[str], said: str = "") -> pl.DataFrame:
    """As documents gives them, without vectors."""
    return pl.DataFrame(
        {
            "id": users,
            "json": [json.dumps({"user_id": user, "said": said}, ensure_ascii=False) for user in users],
            "why": [json.dumps({"tags": [user]}, ensure_ascii=False) for user in users],
        },
        schema={"id": pl.String, "json": pl.String, "why": pl.String},
    )


def vectors(users: list[str]) -> np.ndarray:
    """Every third user has none."""
    rows = [[0.0] * WIDTH if at % 3 == 2 else [float(at), 1.0, -1.0, 0.5] for at in range(len(users))]
    return np.asarray(rows, np.float16).reshape(-1, WIDTH)


def written(root: Root, bucket: int | None, users: list[str], said: str, made_of: list[str]) -> Part:
    return index.write_part(bucket, profiles(users, said), vectors(users), made_of, root)


def published(root: Root, version: int, users: list[str], said: str = "") -> Manifest:
    part = written(root, 0, users, said, [f"file-{version}"])
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
    near = opened.nearest_users(np.ones(WIDTH, np.float32), len(users) + 1)
    assert sorted(user for user, _ in near) == sorted(user for at, user in enumerate(users) if at % 3 != 2)


def test_the_same_profiles_give_the_same_file(tmp_path: Path) -> None:
    root, other = Root.bare(str(tmp_path / "a")), Root.bare(str(tmp_path / "b"))
    users = [f"user-{at}" for at in range(500)]
    first = written(root, 3, users, "", ["x"])
    order = np.random.default_rng(1).permutation(len(users))
    shuffled = index.write_part(3, profiles(users)[order], vectors(users)[order], ["x"], other)
    assert shuffled == first
    assert sorted(entry.path for entry in root.list("index", "files")) == sorted(
        f"index/files/{file.name}" for file in first.files
    )


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
    assert first.parts[0].files == second.parts[0].files
    one, two = Index.open(root, first, tmp_path), Index.open(root, second, tmp_path)
    assert one.get(0, "a") == two.get(0, "a")


def test_old_versions_go_and_files_of_a_live_run_stay(tmp_path: Path) -> None:
    root = Root.bare(str(tmp_path))
    stray = written(root, 0, ["stray"], "", [])
    for version in range(1, 5):
        published(root, version, [f"of-{version}"], str(version))
    names = sorted(entry.path for entry in root.list("index") if entry.path.endswith(".json"))
    assert names == [f"index/{version:020d}.json" for version in (3, 4)]
    files = {Path(entry.path).name for entry in root.list("index", "files")}
    assert {file.name for file in stray.files} < files
    for entry in root.list("index", "files"):
        os.utime(root.path(entry.path), (0, 0))
    published(root, 5, ["of-5"], "5")
    files = {Path(entry.path).name for entry in root.list("index", "files")}
    recent = [index.read(root, version) for version in (4, 5)]
    assert files == {file.name for each in recent for part in each.parts for file in part.files}


def test_a_version_that_is_not_whole_is_not_opened(tmp_path: Path) -> None:
    root = Root.bare(str(tmp_path))
    manifest = published(root, 1, ["a"])
    path = Path(root.path("index", "files", manifest.parts[0].data.name))
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
    one = copy.stat().st_ino
    Index.open(root, first, tmp_path)
    assert copy.stat().st_ino == one, "what is there is not fetched again"
    second = published(root, 2, ["a"], "new")
    Index.open(root, second, tmp_path)
    assert copy.exists(), "another replica may be about to open it"
    os.utime(copy, (0, 0))
    newer = Index.open(root, second, tmp_path)
    assert [path.name for path in tmp_path.glob("*/*.mdb")] == [second.parts[0].data.name], "old copies go"
    assert json.loads(opened.get(0, "书") or b"")["said"] == "old", "and whoever has one open keeps it"
    assert newer.get(0, "书") is None


def test_replicas_of_a_node_may_tidy_at_once(tmp_path: Path) -> None:
    for _ in range(20):
        for at in range(60):
            (tmp_path / f"{at}.mdb").touch()
            os.utime(tmp_path / f"{at}.mdb", (0, 0))
        with ThreadPoolExecutor(4) as replicas:
            list(replicas.map(lambda _: copies.tidy(tmp_path, {"0.mdb"}), range(4)))
        assert [path.name for path in tmp_path.iterdir()] == ["0.mdb"]


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
    root.replace(b"x" * manifest.parts[0].data.size, "index", "files", manifest.parts[0].data.name)
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


def test_a_manifest_reads_as_it_was_written() -> None:
    data, near = File("a.mdb", 1), File("b.near", 2)
    parts = Part(0, 5, data, near, ("x",)), Part(2, 1, data, None, ("y", "z"))
    for items in (None, Part(None, 7, data, near, ("i",))):
        made = Manifest(1, 2, 3, None, parts, items)
        assert Manifest.of(json.loads(json.dumps(made.to_json())), "here") == made
        assert made.profiles == 6


def clustered(count: int, width: int) -> np.ndarray:
    """Unit vectors about some centres, as people's are."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, width))
    rows = centres[rng.integers(20, size=count)] + 0.7 * rng.normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("count", [1, 7, 400, SCANNED + 2_000])
def test_the_nearest_are_found_in_their_true_order(tmp_path: Path, count: int) -> None:
    """In a part that is scanned whole nearly all of them, in a large one most."""
    users, rows = [f"u{at}" for at in range(count)], clustered(count, 32)
    root = Root.bare(str(tmp_path))
    part = index.write_part(0, profiles(users), rows, [], root)
    opened = Index.open(root, Manifest(1, 32, 1, None, (part,)), tmp_path)
    exact = rows.astype(np.float32)
    hits = []
    for at in range(0, count, max(1, count // 20)):
        found = opened.nearest_users(exact[at], 10)
        scores = exact @ exact[at]
        assert [score for _, score in found] == pytest.approx([scores[int(user[1:])] for user, _ in found], abs=1e-6)
        assert found == sorted(found, key=lambda each: (-each[1], each[0]))
        assert found[0][0] == f"u{at}"
        best = np.argsort(-scores)[: min(10, count)]
        hits.append(len({f"u{each}" for each in best} & {user for user, _ in found}) / len(best))
    assert np.mean(hits) > (0.97 if count <= SCANNED else 0.85)


def test_the_nearest_of_all_buckets_are_one_list_and_the_catalogue_s_are_not_among_them(tmp_path: Path) -> None:
    root = Root.bare(str(tmp_path))
    rows = clustered(40, 8)
    parts = tuple(
        index.write_part(bucket, profiles([f"u{at}" for at in range(bucket, 40, 2)]), rows[bucket::2], [], root)
        for bucket in (0, 1)
    )
    facts = pl.DataFrame({"id": ["tea"], "json": ['{"item_id": "tea"}']})
    items = index.write_part(None, facts, rows[:1], [], root)
    opened = Index.open(root, Manifest(1, 8, 2, None, parts, items), tmp_path)
    scores = rows.astype(np.float32) @ rows[5].astype(np.float32)
    assert [user for user, _ in opened.nearest_users(rows[5].astype(np.float32), 6)] == [
        f"u{at}" for at in sorted(range(40), key=lambda at: (-round(float(scores[at]), 6), f"u{at}"))[:6]
    ]
    assert opened.items is not None
    assert opened.items.get("tea") == b'{"item_id": "tea"}'
    assert [name for name, _ in nearest([opened.items], rows[5].astype(np.float32), 3)] == ["tea"]


def test_a_damaged_file_of_vectors_is_named(tmp_path: Path) -> None:
    root = Root.bare(str(tmp_path))
    manifest = published(root, 1, ["a"])
    near = manifest.parts[0].near
    assert near is not None
    Path(root.path("index", "files", near.name)).write_bytes(b"x" * near.size)
    with pytest.raises(StorageError, match=rf"{near.name} cannot be opened"):
        Index.open(root, manifest, tmp_path)

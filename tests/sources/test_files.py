from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
import seaweedfs
from fsspec.implementations.local import LocalFileSystem

from ray_profile.config import Source
from ray_profile.errors import SourceError, StorageError
from ray_profile.sources.files import expand, filesystem


def source(*paths: str) -> Source:
    return Source(format="columns", paths=paths)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "a.csv",
        "b.csv",
        "c.jsonl",
        "_SUCCESS",
        ".hidden.csv",
        "2024/01/a.csv",
        "2024/02/b.csv",
        "2024/.tmp/x.csv",
        "_delta_log/0.csv",
        "评论 1.csv",
        "odd[1].csv",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(folder: Path, *patterns: str) -> list[str]:
    found = expand("s", source(*(f"{folder}/{pattern}" for pattern in patterns)))
    return [file.path.removeprefix(f"{folder}/") for file in found]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.csv", ["a.csv"]),
        ("*.jsonl", ["c.jsonl"]),
        ("?.csv", ["a.csv", "b.csv"]),
        ("[ac].*", ["a.csv", "c.jsonl"]),
        ("[!a].csv", ["b.csv"]),
        ("2024/*/*.csv", ["2024/01/a.csv", "2024/02/b.csv"]),
        ("2024/**/*.csv", ["2024/01/a.csv", "2024/02/b.csv"]),
        ("**/a.csv", ["2024/01/a.csv", "a.csv"]),
        ("2024", ["2024/01/a.csv", "2024/02/b.csv"]),
        ("_delta_log/*", ["_delta_log/0.csv"]),
        ("评论*", ["评论 1.csv"]),
        ("odd[1].csv", ["odd[1].csv"]),
        ("*.parquet", []),
        ("nowhere/*.csv", []),
        ("nowhere.csv", []),
    ],
)
def test_pattern_matches_whole_names_and_leaves_hidden_ones_out(
    folder: Path, pattern: str, expected: list[str]
) -> None:
    assert names(folder, pattern) == expected


def test_overlapping_patterns_name_each_file_once_in_order(folder: Path) -> None:
    assert names(folder, "b.csv", "*.csv", "a.csv") == ["a.csv", "b.csv", "odd[1].csv", "评论 1.csv"]


def test_local_file_carries_its_size_and_modification_time(folder: Path) -> None:
    (file,) = expand("shop", source(f"{folder}/a.csv"))
    assert (file.source, file.size, file.tag) == ("shop", 5, str((folder / "a.csv").stat().st_mtime_ns))


def test_relative_and_file_urls_become_absolute_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert expand("s", source("a.csv")) == expand("s", source(f"file://{folder}/a.csv"))
    assert expand("s", source("a.csv"))[0].path == f"{folder}/a.csv"


def test_a_file_is_one_whatever_way_leads_to_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(folder)
    plain = expand("s", Source(format="taobao", paths=(f"{folder}/*.csv",)))
    assert plain
    ways = (f"{folder}/*.csv", f"{tmp_path}/way/*.csv", f"{folder}/../{folder.name}/*.csv")
    assert expand("s", Source(format="taobao", paths=ways)) == plain


def test_links_to_nothing_and_pipes_are_no_files(folder: Path) -> None:
    (folder / "gone.csv").symlink_to(folder / "nowhere.csv")
    (folder / "loop.csv").symlink_to(folder / "loop.csv")
    (folder / "years.csv").symlink_to(folder / "2024")
    os.mkfifo(folder / "pipe.csv")
    assert names(folder, "*.csv", "gone.csv", "pipe.csv") == ["a.csv", "b.csv", "odd[1].csv", "评论 1.csv"]


def test_file_that_vanishes_while_it_is_listed_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = LocalFileSystem.find

    def find_then_remove(*args: Any, **kwargs: Any) -> Any:
        found = find(*args, **kwargs)
        (folder / "a.csv").unlink()
        return found

    monkeypatch.setattr(LocalFileSystem, "find", find_then_remove)
    assert names(folder, "[ab].csv") == ["b.csv"]


def test_unknown_storage_is_named() -> None:
    with pytest.raises(SourceError, match="no such storage 'gopher'"):
        filesystem("gopher://host/file")


def put(root: str, files: dict[str, bytes]) -> None:
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for name, data in files.items():
        fs.pipe_file(f"{root}/{name}", data)


def test_s3_lists_like_a_folder_with_etags_and_sees_new_files_at_once(s3: seaweedfs.S3Server) -> None:
    root = s3.fresh().rstrip("/")
    put(root, {"a.csv": b"1", "deep/b.csv": b"22", "deep/er/c.csv": b"333", "_SUCCESS": b"", "empty.csv": b""})
    assert [file.path for file in expand("s", source(f"{root}/*.csv"))] == [f"{root}/a.csv", f"{root}/empty.csv"]
    files = expand("s", source(f"{root}/**/*.csv"))
    assert [file.size for file in files] == [1, 2, 3, 0]
    assert len({file.tag for file in files}) == 4
    assert all(file.tag and '"' not in file.tag for file in files)
    assert [file.path for file in expand("s", source(f"{root}/deep"))] == [
        f"{root}/deep/b.csv",
        f"{root}/deep/er/c.csv",
    ]
    put(root, {"z.csv": b"4"})
    assert len(expand("s", source(f"{root}/*.csv"))) == 3
    assert expand("s", source(f"{root}/nothing/*.csv", f"{root}/nothing.csv")) == []


@pytest.mark.usefixtures("s3")
def test_s3_bucket_that_does_not_exist_is_an_error() -> None:
    for path in ("s3://no-such-bucket-here/x/*.csv", "s3://no-such-bucket-here/x.csv"):
        with pytest.raises(StorageError, match=r"no-such-bucket-here/x.*there is no such bucket"):
            expand("s", source(path))


def test_s3_wrong_key_is_an_error_without_the_key(s3: seaweedfs.S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    root = s3.fresh().rstrip("/")
    put(root, {"a.csv": b"1"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    fsspec.filesystem("s3").clear_instance_cache()
    try:
        with pytest.raises(StorageError, match="check AWS_ACCESS_KEY_ID") as caught:
            expand("s", source(f"{root}/*.csv"))
        assert "a-wrong-secret" not in str(caught.value)
    finally:
        fsspec.filesystem("s3").clear_instance_cache()


def test_s3_endpoint_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    fsspec.filesystem("s3").clear_instance_cache()
    try:
        with pytest.raises(StorageError, match="did not answer; check AWS_ENDPOINT_URL"):
            expand("s", source("s3://bucket/*.csv"))
    finally:
        fsspec.filesystem("s3").clear_instance_cache()

"""A configuration, a taxonomy and a key that lie in an object store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import s3fs
import seaweedfs
import tiny
from equal import assert_equal_roots
from typer.testing import CliRunner

from ray_profile import remote
from ray_profile.cli import app
from ray_profile.config import load
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.errors import ConfigError, StorageError, TaxonomyError
from ray_profile.sources.simulate import Shop


@pytest.fixture
def prefix(s3: seaweedfs.S3Server, shop: Shop) -> str:
    """A prefix with the shop's configuration, taxonomy and key, which names the other two beside itself."""
    at = s3.fresh("conf")
    text = shop.config.read_text(encoding="utf-8")
    text = text.replace(json.dumps(str(shop.key_file)), '"keys/shop.key"')
    text = text.replace(json.dumps(f"{shop.folder}/taxonomy.toml"), '"taxonomy.toml"')
    store = s3fs.S3FileSystem()
    store.pipe(f"{at}/ray_profile.toml", text.encode())
    store.pipe(f"{at}/keys/shop.key", shop.key_file.read_bytes())
    store.pipe(f"{at}/taxonomy.toml", (shop.folder / "taxonomy.toml").read_bytes())
    return at


def test_a_build_whose_settings_lie_on_s3_equals_one_whose_settings_lie_here(
    prefix: str, built: Path, tmp_path: Path
) -> None:
    config = f"{prefix}/ray_profile.toml"
    words = ["build", "--local", "--config", config, "--set", f"root={tmp_path / 'root'}"]
    done = CliRunner().invoke(app, [*words, "--set", "encoder.dtype=float32"])
    assert done.exit_code == 0, done.output
    assert_equal_roots(tmp_path / "root", built, tiny.WIDTH)


def test_paths_are_those_of_the_files_own_prefix_but_for_what_a_replica_keeps(prefix: str) -> None:
    config = load(f"{prefix}/ray_profile.toml", ["root=../root", "serve.tokens=tokens.jsonl"])
    assert config.taxonomy.path == f"{prefix}/taxonomy.toml"
    assert config.privacy.key_file == f"{prefix}/keys/shop.key"
    assert config.root == f"{prefix.rsplit('/', 1)[0]}/root"
    assert all(path.startswith("/") for source in config.sources.values() for path in source.paths)
    serve = config.serve
    assert serve.tokens == str(Path.home() / "tokens.jsonl")
    assert serve.audit == str(Path.home() / "audit.jsonl")
    assert Path(serve.cache).is_absolute()


@pytest.mark.parametrize(
    ("folder", "path", "found"),
    [
        ("s3://bucket/conf", "taxonomy.toml", "s3://bucket/conf/taxonomy.toml"),
        ("s3://bucket/conf", "../raw/*.csv", "s3://bucket/raw/*.csv"),
        ("s3://bucket", "a/b", "s3://bucket/a/b"),
        ("s3://bucket/conf", "/run/shop.key", "/run/shop.key"),
        ("s3://bucket/conf", "s3://other/x", "s3://other/x"),
        ("/etc/shop", "x.key", "/etc/shop/x.key"),
        ("/etc/shop", "s3://other/x", "s3://other/x"),
    ],
)
def test_a_path_in_a_file_means_the_same_wherever_the_file_is_read(folder: str, path: str, found: str) -> None:
    assert remote.beside(folder, path) == found


def test_what_is_not_there_is_named_with_the_next_step(prefix: str) -> None:
    with pytest.raises(ConfigError, match=rf"there is no '{prefix}/none.toml'; `ray-profile init` writes one"):
        load(f"{prefix}/none.toml")
    with pytest.raises(TaxonomyError, match=r"taxonomy.path .*none.toml': there is no such file"):
        Taxonomy.load(f"{prefix}/none.toml")
    config = load(f"{prefix}/ray_profile.toml", ["privacy.key_file=none.key"])
    with pytest.raises(ConfigError, match=rf"privacy.key_file '{prefix}/none.key' cannot be read"):
        config.privacy.key()


def test_a_store_that_refuses_is_a_message_of_the_command(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    done = CliRunner().invoke(app, ["status", "--config", f"{prefix}/ray_profile.toml"])
    s3fs.S3FileSystem.clear_instance_cache()
    assert done.exit_code == StorageError.exit_code
    assert "Traceback" not in done.output
    assert f"{prefix}/ray_profile.toml cannot be read: the store refused; check AWS_ACCESS_KEY_ID" in done.stderr
    assert "wrong" not in done.stderr


def test_a_storage_that_there_is_not_is_a_message() -> None:
    with pytest.raises(StorageError, match="there is no such storage; use a folder or s3://"):
        load("gopher://x/ray_profile.toml")

"""A root and sources on S3: the same tables as in a folder; wrong keys are a message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import s3fs
import seaweedfs
import tiny
from equal import assert_equal_roots

from ray_profile.errors import StorageError
from ray_profile.pipelines.build import build
from ray_profile.sources.simulate import Shop


def test_from_s3_to_s3_equals_from_a_folder_to_a_folder(s3: seaweedfs.S3Server, shop: Shop, built: Path) -> None:
    raw = s3.fresh("raw")
    s3fs.S3FileSystem().put(f"{shop.folder}/", f"{raw}/", recursive=True)
    paths = {
        "reviews": f"{raw}/reviews-*.jsonl.gz",
        "events": f"{raw}/events-*.csv",
        "items": f"{raw}/items.jsonl",
    }
    root = s3.fresh()
    config = tiny.config_of(shop, root, *(f"sources.{name}.paths={json.dumps([at])}" for name, at in paths.items()))
    done = build(config, local=True, clock=tiny.CLOCK)
    assert done.report.rows_read == shop.review_rows + shop.event_rows
    assert_equal_roots(root, built, tiny.WIDTH)
    assert build(config, local=True, clock=tiny.CLOCK).waves == 0


def test_wrong_keys_are_a_message(s3: seaweedfs.S3Server, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config_of(shop, s3.fresh())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=config.root) as caught:
        build(config, local=True, clock=tiny.CLOCK)
    assert caught.value.exit_code == 1


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_a_message(shop: Shop) -> None:
    config = tiny.config_of(shop, "s3://no-such-bucket/root")
    with pytest.raises(StorageError, match="no-such-bucket"):
        build(config, local=True, clock=tiny.CLOCK)

"""The S3 server that the other tests trust: it takes the right keys only, and lets one creator win."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import s3fs
import seaweedfs


def _client(s3: seaweedfs.S3Server, secret: str) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(key=s3.key, secret=secret, skip_instance_cache=True, use_listings_cache=False)


def test_it_refuses_a_wrong_secret(s3: seaweedfs.S3Server) -> None:
    with pytest.raises(PermissionError):
        _client(s3, "wrong").ls(s3.bucket)
    assert isinstance(_client(s3, s3.secret).ls(s3.bucket), list)


def test_one_of_many_creators_wins(s3: seaweedfs.S3Server) -> None:
    filesystem = _client(s3, s3.secret)
    path = s3.fresh("race") + "/one"

    def create(who: int) -> bool:
        try:
            filesystem.pipe_file(path, str(who).encode(), mode="create")
        except OSError as error:
            if "pre-condition" not in str(error):  # HTTP 412 is the loser's answer; anything else is trouble
                raise
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert sum(won) == 1
    assert int(filesystem.cat_file(path)) == won.index(True)

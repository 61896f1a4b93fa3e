"""The bucket's policy, put on a real S3 server."""

from __future__ import annotations

import json
from typing import Any

import manifests
import pytest
import s3fs
import seaweedfs

CUSTOMER = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}


def statements(bucket: str, *names: str) -> str:
    """The policy for a bucket, of the statements of these names only."""
    policy = json.loads((manifests.CLUSTER / "iam" / "bucket-policy.json").read_text().replace("BUCKET", bucket))
    policy["Statement"] = [each for each in policy["Statement"] if each["Sid"] in names]
    assert len(policy["Statement"]) == len(names)
    return json.dumps(policy)


@pytest.fixture
def store(s3: seaweedfs.S3Server) -> s3fs.S3FileSystem:
    """A client of the server's administrator, whom a refusal binds as everybody else."""
    return s3fs.S3FileSystem(
        key=s3.key, secret=s3.secret, client_kwargs={"endpoint_url": s3.endpoint}, skip_instance_cache=True
    )


def put(store: s3fs.S3FileSystem, bucket: str, **how: Any) -> None:
    store.call_s3("put_object", Bucket=bucket, Key="row", Body=b"1", **how)


def test_a_bucket_refuses_what_it_would_keep_under_other_encryption_than_its_own(store: s3fs.S3FileSystem) -> None:
    store.mkdir("encrypted")
    policy = statements("encrypted", "DenyUnencryptedWrites", "DenyKeysOfOthers")
    store.call_s3("put_bucket_policy", Bucket="encrypted", Policy=policy)
    put(store, "encrypted")  # as all of ours do: it gets the bucket's own
    put(store, "encrypted", ServerSideEncryption="AES256")
    for how in ({"ServerSideEncryption": "aws:kms:dsse"}, CUSTOMER):
        with pytest.raises(PermissionError):
            put(store, "encrypted", **how)


def test_a_bucket_refuses_plain_http_even_to_its_administrator(store: s3fs.S3FileSystem) -> None:
    store.mkdir("tls-only")
    put(store, "tls-only")
    store.call_s3("put_bucket_policy", Bucket="tls-only", Policy=statements("tls-only", "DenyWithoutTls"))
    with pytest.raises(PermissionError):
        put(store, "tls-only")
    with pytest.raises(PermissionError):
        store.call_s3("get_object", Bucket="tls-only", Key="row")

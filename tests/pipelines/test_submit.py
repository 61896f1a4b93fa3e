"""Jobs of a cluster that wants a token: refused without it, and with it the same tables as a build here."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
from equal import assert_equal_roots
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from seaweedfs import die_with_parent
from typer.testing import CliRunner

from ray_profile.cli import app
from ray_profile.sources.simulate import Shop
from ray_profile.store.index import current
from ray_profile.store.root import Root

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 90


@dataclass(frozen=True)
class Guarded:
    """A cluster of one node that wants a token."""

    address: str
    environment: dict[str, str]  # of somebody who has the token

    @property
    def stranger(self) -> dict[str, str]:
        """Of somebody who has none."""
        return {name: value for name, value in self.environment.items() if not name.startswith("RAY_AUTH")}

    def run(self, *words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ray_profile", "submit", words[0], "--address", self.address, *words[1:]]
        return subprocess.run(
            command, env=environment or self.environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=240
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Guarded]:
    """Started by `ray start`, as the files of cluster/ do it, with ports and folders of its own."""
    with tempfile.TemporaryDirectory(prefix="r-") as folder:  # a short path, for sockets lie below it
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "HOME": folder,  # where a token of the person who runs the tests is not
            "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        port, dashboard, agent, client = _ports(4)
        words = [
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}",
            f"--temp-dir={folder}/ray",
            "--num-cpus=2",
            "--labels=pool=encode",
            "--object-store-memory=300000000",
            "--disable-usage-stats",
            "--block",
        ]
        with (Path(folder) / "log").open("w+b") as log:
            head = subprocess.Popen(
                [str(Path(sys.executable).parent / "ray"), "start", "--head", *words],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
            try:
                guarded = Guarded(f"http://127.0.0.1:{dashboard}", environment)
                _await(guarded, head, Path(folder) / "log")
                yield guarded
            finally:
                head.terminate()
                head.wait(60)


def _ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in held]
    for each in held:
        each.close()
    return ports


def _await(guarded: Guarded, head: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the Jobs API answers; Ray offers nothing to wait on."""
    client = SubmissionClient(guarded.address)
    client._headers = {"Authorization": f"Bearer {guarded.environment['RAY_AUTH_TOKEN']}"}
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client._check_connection_and_version()
            return
        except Exception:
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_takes_jobs_from_who_has_its_token_and_gives_what_a_build_here_gives(
    cluster: Guarded, shop: Shop, built: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    sets = [f"root={root}", "encoder.dtype=float32", 'build.encoder_labels={ pool = "encode" }']
    words = ["--config", str(shop.config), *(word for each in sets for word in ("--set", each))]

    wrong = {**cluster.environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for environment in (cluster.stranger, wrong):
        refused = cluster.run("build", *words, environment=environment)
        assert refused.returncode == 2, refused.stderr
        assert f"the cluster at {cluster.address} refused the token, or got none" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not root.exists()

    # RAY_ADDRESS names another cluster: what is said on the command line is meant.
    other = {**cluster.environment, "RAY_ADDRESS": "http://127.0.0.1:1"}
    done = cluster.run("build", "--json", *words, environment=other)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.startswith("submitted as raysubmit_")
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["rows_read"] == shop.review_rows + shop.event_rows
    assert "rows read" in done.stdout  # the summary that people read
    assert_equal_roots(root, built, tiny.WIDTH)

    mistaken = cluster.run("build", *words, "--set", "state.buckets=5")
    assert mistaken.returncode == 2
    assert "set state.buckets = 4" in mistaken.stdout

    ray = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", cluster.address]
    script = ["--working-dir", str(REPOSITORY), "--", "python", "jobs/index_profiles.py", *words]
    indexed = subprocess.run([*ray, *script], env=cluster.environment, capture_output=True, text=True, timeout=240)
    assert indexed.returncode == 0, indexed.stdout + indexed.stderr
    manifest = current(Root.existing(str(root)))
    assert manifest is not None
    assert manifest.profiles == counts["users"]


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_asks_whether_to_stop_the_job(cluster: Guarded, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "waits.toml")  # whoever reads it waits until somebody writes
    words = [sys.executable, "-m", "ray_profile", "submit", "build", "--address", cluster.address]
    for answer, said in (("n\n", "the job goes on"), ("y\n", "stop the job?")):
        following = subprocess.Popen(
            [*words, "--config", str(tmp_path / "waits.toml")],
            env=cluster.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert following.stderr is not None
        first = following.stderr.readline()
        assert first.startswith("submitted as "), first
        following.send_signal(signal.SIGINT)
        _, rest = following.communicate(answer, timeout=120)
        assert following.returncode == 130, rest
        assert said in rest
        assert "Traceback" not in rest
        job = first.split()[2].rstrip(";")
        asked = ["job", "status", "--address", cluster.address, job]
        ray = str(Path(sys.executable).parent / "ray")
        state = subprocess.run([ray, *asked], env=cluster.environment, capture_output=True, text=True, timeout=60)
        assert ("stopped" in (state.stdout + state.stderr).lower()) is (answer == "y\n")
        if answer == "n\n":
            (tmp_path / "waits.toml").write_text("")  # the job that goes on reads it, and ends


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["build", "--config", "ray_profile.toml"], "is a file of this machine, which the cluster's nodes do not have"),
        (["demo", "--config", "s3://b/c.toml"], "'demo' is no command for a cluster; there are build, train"),
        (["build", "--config", "s3://b/c.toml"], "no cluster takes jobs at http://127.0.0.1:1 "),
    ],
)
def test_what_cannot_be_submitted_is_a_message(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["submit", *words, "--address", "http://127.0.0.1:1"])
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert done.stdout == ""

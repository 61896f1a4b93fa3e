"""`submit`: a command runs as a job of a cluster, whose log is followed here to its end."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from ray_profile.errors import BuildFailed, ConfigError
from ray_profile.remote import is_remote

COMMANDS = ("build", "train", "tune", "index", "compact")
STOPPED = 130  # what a shell expects of a command that somebody has stopped
LOST = 10  # times in a row that a job cannot be asked for before it is given up
PAUSE_SECONDS = 1.0

#: Which of Ray's variables would win over an address that a person names.
_OTHER_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class Job:
    """A command that was handed to a cluster. It goes on whether anybody follows it or not."""

    id: str
    address: str
    client: JobSubmissionClient

    def follow(self, show: Callable[[str], None], begun: Callable[[], None] = lambda: None) -> int:
        """Hand the log on, piece by piece as it comes, until the job has ended; the exit code of its command.

        `begun` is called once, from when on Ctrl-C ends this cleanly. A connection that breaks is made again, and
        nothing is shown twice. Raises `BuildFailed` where the cluster cannot be asked any more: the job may go on.
        """
        shown, lost = 0, 0

        async def tail() -> None:
            nonlocal shown, begun
            begun()
            begun, at = (lambda: None), 0
            async for text in self.client.tail_job_logs(self.id):
                show(text[max(0, shown - at) :])  # each connection begins with the first line
                at += len(text)
                shown = max(shown, at)

        while True:
            try:
                asyncio.run(tail())
                info = self.client.get_job_info(self.id)
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                lost += 1
                if lost == LOST:
                    raise BuildFailed(
                        f"{self.address} cannot be asked for the job {self.id} any more ({error}); it may go on: "
                        f"`{self.again}` shows its log"
                    ) from error
            else:
                lost = 0
                if info.status.is_terminal():
                    return _code(info.status, info.driver_exit_code)
            time.sleep(PAUSE_SECONDS)

    @property
    def again(self) -> str:
        """The command that shows the log anew."""
        return f"ray job logs --address {self.address} --follow {self.id}"

    def stop(self) -> None:
        """Ask the cluster to end the job. Raises `BuildFailed` where it cannot be asked."""
        try:
            self.client.stop_job(self.id)
        except (RuntimeError, OSError) as error:
            raise BuildFailed(f"{self.address} cannot be told to stop the job {self.id} ({error})") from error


def submit(address: str, command: str, config: str, options: Sequence[str]) -> Job:
    """Hand one of `COMMANDS` to the cluster whose dashboard answers at `address`.

    `config` is an s3:// address, or an absolute path at which every node has the file. Nothing of this machine's own
    environment goes along: keys are those of the nodes. Raises `ConfigError` where there is no such command, where the
    nodes could not find the file, and where the cluster is not there or refuses the token.
    """
    if command not in COMMANDS:
        raise ConfigError(f"{command!r} is no command for a cluster; there are {', '.join(COMMANDS)}")
    if not is_remote(config) and not os.path.isabs(config):  # noqa: PTH117  # of another machine
        raise ConfigError(
            f"--config {config!r} is a file of this machine, which the cluster's nodes do not have; copy it to the "
            "object store and name it as s3://BUCKET/..., or name the absolute path at which every node has it"
        )
    logging.getLogger("ray").setLevel(logging.WARNING)
    words = ["python", "-m", "ray_profile", command, "--config", config, *options]
    try:
        with _no_other_address():
            client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=shlex.join(words))
    except AuthenticationError as error:
        raise ConfigError(
            f"the cluster at {address} refused the token, or got none; set RAY_AUTH_MODE=token, and the cluster's "
            "token in the file that RAY_AUTH_TOKEN_PATH names"
        ) from error
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"no cluster takes jobs at {address} ({error}); name its dashboard, such as http://127.0.0.1:8265 behind "
            "`ray dashboard` or `kubectl port-forward`"
        ) from error
    return Job(job, address, client)


def _code(status: JobStatus, code: int | None) -> int:
    if status == JobStatus.SUCCEEDED:
        return 0
    if status == JobStatus.STOPPED:
        return STOPPED
    return code or BuildFailed.exit_code


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Ray lets these variables win over the address that it is told."""
    kept = {name: os.environ.pop(name) for name in _OTHER_ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)

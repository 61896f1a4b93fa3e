"""Who looked at whom: one JSON line an access, appended; who asked, which pseudonym, which route, when. No content."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from ray_profile.errors import ConfigError


class Audit:
    """An open audit log. Several processes of a machine may share the file: a line is one write, which the system
    appends whole."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(
                f"serve.audit {str(path)!r} cannot be written ({error.strerror}); name another"
            ) from error

    def note(self, caller: str, route: str, users: list[str], found: int) -> None:
        """An access, before it is answered. `users` are pseudonyms; `found` of them have a profile."""
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        said = {"at": when, "caller": caller, "route": route, "users": users, "found": found}
        os.write(self._file, json.dumps(said).encode() + b"\n")

    def close(self) -> None:
        """Nothing is written after this."""
        os.close(self._file)

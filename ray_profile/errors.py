"""What a person or the world can do wrong, drawn as a tree.

    RayProfileError                 exit code 2: the person can mend it; the message says how
    ├── ConfigError                 a key, value or file of the configuration
    ├── SourceError                 a source that does not hold what its format promises
    ├── EncoderError                a model that cannot be loaded, or cannot read the corpus
    ├── TaxonomyError               a taxonomy file that contradicts itself
    ├── RootError                   a root made with other settings, or no root at all
    │   └── ChangedFileError        a file that is folded in already has changed since
    ├── UnknownUserError            nobody by that name in the profiles
    └── BuildFailed                 exit code 1: this run changed nothing; the data or the world must change
        ├── QuarantineLimitError    too many bad rows in one source
        ├── FencedError             another run committed to this root first
        ├── TrainingDiverged        a loss became no number
        └── StorageError            the object store refused or did not answer

`FileRejected` stands apart: it never reaches a person as an error, a run catches it and goes on without the file.
"""

from __future__ import annotations


class RayProfileError(Exception):
    """A mistake whose message names the value, the rule and the next step. `exit_code` is what the CLI returns."""

    exit_code = 2


class ConfigError(RayProfileError):
    """A key, a value or a file of the configuration is wrong."""


class SourceError(RayProfileError):
    """A source does not hold what its format or column map promises."""


class EncoderError(RayProfileError):
    """An encoder cannot be loaded, or its tokenizer cannot read the corpus."""


class TaxonomyError(RayProfileError):
    """A taxonomy file contradicts itself or cannot be read."""


class RootError(RayProfileError):
    """The root was made with other settings, or there is none."""


class ChangedFileError(RootError):
    """A file that a committed wave has folded in is no longer the same file."""


class UnknownUserError(RayProfileError):
    """No profile under this user id."""


class BuildFailed(RayProfileError):
    """The run stopped and committed nothing that it had not finished."""

    exit_code = 1


class QuarantineLimitError(BuildFailed):
    """More rows of a source are bad than `max_quarantine` allows."""


class FencedError(BuildFailed):
    """Another run committed to the same root after this one had opened it."""


class TrainingDiverged(BuildFailed):
    """The loss of a training run became infinite or no number; nothing was published."""


class StorageError(BuildFailed):
    """The object store refused the request or did not answer."""


class FileRejected(Exception):
    """A file cannot be read whole, so none of it is folded in.

    `transient` says that the file itself may be well: it vanished or changed while it was being read.
    """

    def __init__(self, path: str, reason: str, transient: bool = False) -> None:
        super().__init__(path, reason, transient)  # as args, so that the exception survives pickling between processes
        self.path = path
        self.reason = reason
        self.transient = transient

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"

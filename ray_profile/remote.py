"""Small files by their address, on this machine or in an object store, and what a store's refusal means to a person."""

from __future__ import annotations

import errno
import os
import posixpath
from pathlib import Path

from ray_profile.errors import StorageError


def is_remote(path: str) -> bool:
    """Whether an address is not one of this machine's own file system."""
    return "://" in path and not path.startswith("file://")


def read(path: str) -> bytes:
    """The whole of one file.

    Raises `OSError` where this machine has no such file or may not read it, `FileNotFoundError` where a store has none,
    and `StorageError` where the store refuses or does not answer.
    """
    if not is_remote(path):
        return Path(path.removeprefix("file://")).expanduser().read_bytes()
    import fsspec  # with S3's client a quarter of the time of a local look-up

    try:
        filesystem, inner = fsspec.url_to_fs(path, use_listings_cache=False)
        return bytes(filesystem.cat_file(inner))
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    except Exception as error:  # each client has its own; there is none above them all
        raise StorageError(refusal(path, "read", error)) from error


def beside(folder: str, path: str) -> str:
    """A path as one means it who writes it into a file in `folder`, local or not: full addresses stay as they are."""
    if "://" in path:
        return path
    if not is_remote(folder) or path.startswith(("/", "~")):
        return str((Path(folder.removeprefix("file://")) / Path(path).expanduser()).absolute())
    scheme, _, inner = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(inner, path))}"


def refusal(path: str, verb: str, error: Exception) -> str:
    """What the store answered, and what to do about it. Never the credentials."""
    text = str(error) or type(error).__name__
    kind = type(error).__name__
    if isinstance(error, PermissionError) or "Credential" in kind or "Forbidden" in text or "SignatureDoes" in text:
        step = f"the store refused; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the permission to {_ASKED[verb]}"
    elif isinstance(error, FileNotFoundError) or "NoSuchBucket" in text or "bucket does not exist" in text.lower():
        step = "there is no such bucket; check its name and AWS_ENDPOINT_URL"
    elif isinstance(error, (ValueError, ImportError)):
        step = "there is no such storage; use a folder or s3://"
    else:
        step = "the store did not answer; check AWS_ENDPOINT_URL and the network, then run the same command again"
    return f"{path} cannot be {verb}: {step} ({kind}: {text})"


#: What somebody may not do who is told that it cannot be done.
_ASKED = {"listed": "list", "read": "read"}

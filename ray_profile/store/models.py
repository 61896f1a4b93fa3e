"""Trained models at rest under a root: immutable versions, and for each name a pointer to the current one.

    models/<name>/<digest>/...              a Hugging Face folder, heads.safetensors, model.json
    models/<name>/<digest>/manifest.json    {"files": {relative path: SHA-256}}, written after all of them
    models/<name>/current.json              {"digest": ...}, written after the manifest

The digest is the first 16 hex digits of the manifest's own SHA-256, so an address names one content for good. Readers
follow current.json only: what a killed `publish` leaves behind is seen by nobody, and the next one of the same content
completes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_profile.encode import trained
from ray_profile.encode.weights import MANIFEST_FILE, MODEL_FILE, UNDER_ROOT, assert_loadable, file_hash, verified
from ray_profile.errors import EncoderError
from ray_profile.store.root import Root, asking
from ray_profile.store.waves import Step, ignore_step

__all__ = ["copied", "current", "located", "publish", "verified", "versions"]

FOLDER = "models"
CURRENT_FILE = "current.json"
RESERVED = "sentiment-probe"  # pipelines/probe.py keeps it beside the models

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_DIGEST = re.compile(r"[0-9a-f]{16}")
_PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def publish(root: Root, name: str, folder: Path, at: Step = ignore_step) -> str:
    """Copy a finished folder under the root as the current version of model `name`; returns its digest.

    The folder holds model.json beside what an encoder needs; hidden files stay behind. Publishing what is current
    already writes nothing. `at` is told the steps: files, manifest and pointer, each followed by ".before", and
    "pointer.after". Raises `EncoderError` for a name that cannot be, and a folder that no build could use or that holds
    a pickle; `StorageError` where the store refuses.
    """
    _check_name(name)
    files = _files(folder)
    assert_loadable(str(folder), folder)
    trained.check(folder)
    manifest = _manifest(files)
    digest = hashlib.sha256(manifest).hexdigest()[:16]
    version = (FOLDER, name, digest)
    at("files.before")
    copied(folder, root, version)
    at("manifest.before")
    if not root.create_bytes(manifest, *version, MANIFEST_FILE):
        root.replace(manifest, *version, MANIFEST_FILE)  # somebody has changed it since
    at("pointer.before")
    if root.read_json(FOLDER, name, CURRENT_FILE) != {"digest": digest}:
        root.replace_json({"digest": digest}, FOLDER, name, CURRENT_FILE)
    at("pointer.after")
    return digest


def copied(folder: Path, root: Root, parts: Sequence[str]) -> None:
    """Copy the files of a folder below `parts` of the root, but for those that lie there already, the same to the byte.

    Each appears whole. What else lies there stays.
    """
    there = {entry.path: entry.size for entry in root.list(*parts)}
    for name, path in _files(folder).items():
        to = "/".join((*parts, name))
        if there.get(to) != path.stat().st_size or _hash_there(root, to) != file_hash(path):
            root.replace(path, to)


def located(root: Root, name: str) -> str:
    """The address of the current version of a model: a folder's path or an s3:// prefix, of one content for good.

    Raises `EncoderError` where the root has no such model, naming those that it has, or lacks the version.
    """
    digest = _current(root, name)
    if digest is None:
        known = _names(root)
        raise EncoderError(
            f"encoder.model '{UNDER_ROOT}{name}': {root.address} has no model of that name; it has "
            f"{', '.join(known) or 'none'}. Name one of them, train one with `ray-profile train`, or name the model of "
            f"another root by its address, ROOT/{FOLDER}/NAME/DIGEST."
        )
    return root.uri(FOLDER, name, digest)


def current(root: Root, name: str) -> dict[str, Any] | None:
    """What model.json of the current version says, or None where the root has no such model."""
    digest = _current(root, name)
    return None if digest is None else root.read_json(FOLDER, name, digest, MODEL_FILE)


def versions(root: Root, name: str) -> list[str]:
    """The digests of all whole versions of a model, in the order in which they were published first."""
    _check_name(name)
    whole = []
    for entry in root.list(FOLDER, name):
        *_, digest, file = entry.path.split("/")
        if file == MANIFEST_FILE and entry.path == "/".join((FOLDER, name, digest, file)):
            whole.append((entry.modified, digest))
    return [digest for _, digest in sorted(whole)]


def _current(root: Root, name: str) -> str | None:
    _check_name(name)
    said = root.read_json(FOLDER, name, CURRENT_FILE)
    if said is None:
        return None
    where = root.uri(FOLDER, name, CURRENT_FILE)
    digest = said.get("digest") if isinstance(said, dict) else None
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise EncoderError(f"{where} holds {said!r}, which names no version; restore it, or train the model again.")
    if root.read_json(FOLDER, name, digest, MANIFEST_FILE) is None:
        raise EncoderError(
            f"{where} names version {digest}, which has no {MANIFEST_FILE}; restore {root.uri(FOLDER, name)} from a "
            "copy, or train the model again."
        )
    return digest


def _names(root: Root) -> list[str]:
    paths = (entry.path.split("/") for entry in root.list(FOLDER))
    return sorted(path[1] for path in paths if path[2:] == [CURRENT_FILE] and path[1] != RESERVED)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise EncoderError(
            f"{name!r} is no name of a model: it holds letters, digits, - _ . only, and begins with a letter or digit."
        )
    if name == RESERVED:
        raise EncoderError(f"no model can be called {name!r}: a root keeps its sentiment probe there; choose another.")


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder by relative path, sorted, without hidden ones and its manifest."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name, path in found.items():
        if path.suffix.lower() in _PICKLED:
            raise EncoderError(f"{folder} holds {name}, which may be a pickle, and a pickle can run code; take it out.")
    return {
        name: path
        for name, path in found.items()
        if name != MANIFEST_FILE and not any(part.startswith(".") for part in name.split("/"))
    }


def _manifest(files: Mapping[str, Path]) -> bytes:
    hashes = {name: file_hash(path) for name, path in files.items()}
    return json.dumps({"files": hashes}, ensure_ascii=False, indent=1, sort_keys=True).encode()


def _hash_there(root: Root, path: str) -> str:
    with asking(root.address, f"read {path}"), root.fs.open(root.path(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

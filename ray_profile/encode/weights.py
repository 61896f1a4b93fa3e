"""Where a model lies, and what makes it that model and no other: resolve a name to a folder, and digest the folder.

Only safetensors weights and JSON or text files are read or downloaded, never a pickle. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import fsspec

from ray_profile import config
from ray_profile.errors import EncoderError

#: What is copied from a store or a hub; everything else there is left where it is.
_WANTED = ("*.safetensors", "*.json", "*.txt", "*.model")

#: What can change a vector, so what the digest covers (weights are matched by their suffix).
_DIGESTED = {
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
}

#: What a trained model's folder holds beside an encoder.
HEADS_FILE, MODEL_FILE, MANIFEST_FILE = "heads.safetensors", "model.json", "manifest.json"

#: The scheme of a model that lies under the root of a run, and the end of the address that it stands for.
UNDER_ROOT = "root:"
_VERSION = re.compile(r"/models/[^/]+/([0-9a-f]{16})/?$")

_RESTORE = "restore it from a copy, or train the model again"
_NEXT_STEP = (
    f"Name a folder, an s3:// prefix, a Hugging Face id such as 'BAAI/bge-small-zh-v1.5', or {config.DEFAULT_ENCODER!r}"
)


def resolve(model: str) -> Path:
    """Return the local folder that holds `model`, downloading it once where it lies elsewhere.

    `model` is a folder; `package:<module>/<folder>` for weights that an installed package ships (its code is not run);
    `bundled:multilingual-e5-small`, which comes with the extra `bilingual`;
    a prefix with a scheme, as `s3://bucket/models/x`; or a Hugging Face id (only then the network is used).
    A trained model's files are compared with its manifest, once a process where it is a folder, and when it is
    downloaded. Raises `EncoderError` where nothing is found, where the weights are not safetensors, or where a file is
    not the one that was published.
    """
    if model.startswith(UNDER_ROOT):
        raise EncoderError(
            f"encoder.model {model!r} names a model of the root, which only a run on that root looks up; name its "
            f"address instead: ROOT/models/{model.removeprefix(UNDER_ROOT)}/DIGEST."
        )
    if model.startswith("package:"):
        folder = _in_package(model)
    elif model.startswith("bundled:"):
        from ray_profile.encode.bundled import locate  # which itself uses this module's cache

        folder = locate(model)
    elif "://" in model:
        folder = _from_store(model)
    elif Path(model).expanduser().is_dir():
        folder = Path(model).expanduser().resolve()
        _assert_published(model, folder)
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        folder = _from_hub(model)
    else:
        raise EncoderError(f"encoder.model {model!r}: there is no such folder. {_NEXT_STEP}.")
    assert_loadable(model, folder)
    return folder


def model_digest(folder: Path, settings: config.Encoder) -> str:
    """SHA-256 (first 16 hex digits) over weights, configuration, tokenizer, prefix, pooling and max_length.

    Two encoders with the same digest give the same vectors up to rounding, wherever the folder lies. A file's hash is
    kept by (path, size, mtime), so asking again in the same process costs a `stat` per file.
    """
    files = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and (path.suffix in {".safetensors", ".model"} or path.name in _DIGESTED):
            files[path.name] = file_hash(path)
    return config.digest(
        {"files": files, "prefix": settings.prefix, "pooling": settings.pooling, "max_length": settings.max_length}
    )


def cache_folder() -> Path:
    """The user's own cache folder: downloads go there, never into a folder that others can write."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(home) if home else Path.home() / ".cache") / "ray_profile"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read once a process for as long as its size and time stay the same."""
    stat = path.stat()
    return _file_hash(str(path), stat.st_size, stat.st_mtime_ns)


def verified(folder: Path, named: str | None = None) -> Path:
    """The folder of a published model, after comparing its files with its manifest; errors call it `named`.

    Files that no model is read from may be missing, as a download leaves them out. Raises `EncoderError` for any other
    that is missing, is another one, or was not published.
    """
    named = named or str(folder)
    files = read_json(folder / MANIFEST_FILE).get("files")
    if not isinstance(files, dict):
        raise EncoderError(f"{named}: {MANIFEST_FILE} is missing or names no files; {_RESTORE}.")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            if _is_wanted(name):
                raise EncoderError(f"{named}: {name} is gone, which the manifest names; {_RESTORE}.")
        elif (found := file_hash(path)) != expected:
            raise EncoderError(f"{named}: {name} has SHA-256 {found}, and {expected} in the manifest; {_RESTORE}.")
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST_FILE and name not in files and _is_wanted(name):
            raise EncoderError(f"{named}: {name} is not in the manifest, so it was not published; take it away.")
    return folder


def _assert_published(model: str, folder: Path) -> None:
    """Verify a trained model that has a manifest; one that is addressed by its digest must have the one of that digest.

    Somebody else's manifest.json, without our model.json beside it, is none of our business.
    """
    version = _VERSION.search(model)
    if version is None and not all((folder / name).is_file() for name in (MODEL_FILE, MANIFEST_FILE)):
        return
    verified(folder, model)
    found = file_hash(folder / MANIFEST_FILE)[:16]
    if version is not None and found != version[1]:
        raise EncoderError(f"{model}: {MANIFEST_FILE} has digest {found}, not {version[1]}; {_RESTORE}.")


def _is_wanted(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in _WANTED)


@lru_cache(maxsize=256)
def _file_hash(path: str, size: int, mtime_ns: int) -> str:  # noqa: ARG001 - size and time are the cache's key
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_package(model: str) -> Path:
    module, _, inside = model.removeprefix("package:").partition("/")
    top, *rest = module.split(".")  # a dotted name would make find_spec import the parent package
    spec = importlib.util.find_spec(top) if top else None
    if spec is None:
        raise EncoderError(
            f"encoder.model {model!r}: the package {top!r} is not installed. "
            f"Install it (`pip install {top.replace('_', '-')}`) or name another model. {_NEXT_STEP}."
        )
    roots = [Path(root) for root in spec.submodule_search_locations or []]
    for root in roots:
        folder = root.joinpath(*rest, inside)
        if folder.is_dir():
            return folder
    tried = ", ".join(str(root.joinpath(*rest, inside)) for root in roots) or "no folder: it is a single module"
    raise EncoderError(f"encoder.model {model!r}: the package is installed but has no such folder (tried {tried}).")


def _from_store(model: str) -> Path:
    try:
        filesystem, prefix = fsspec.core.url_to_fs(model)
        filesystem.invalidate_cache()
        found = filesystem.find(prefix, detail=True)
    except (OSError, ValueError, ImportError) as error:
        raise EncoderError(
            f"encoder.model {model!r} cannot be listed ({error}); check the address, the endpoint and the credentials."
        ) from error
    wanted = {path: info for path, info in found.items() if _is_wanted(path)}
    if not wanted:
        raise EncoderError(f"encoder.model {model!r}: no model file lies under this prefix. {_NEXT_STEP}.")
    stamp = config.digest([model, sorted((path, info["size"], info.get("ETag")) for path, info in wanted.items())])
    folder = cache_folder() / "models" / stamp
    if not folder.is_dir():
        _download(filesystem, model, prefix, list(wanted), folder)
    return folder


def _download(filesystem: fsspec.AbstractFileSystem, model: str, prefix: str, paths: list[str], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    root = prefix.rstrip("/") + "/"
    try:
        for path in paths:
            target = partial / path.removeprefix(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(path, str(target))
        _assert_published(model, partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another worker of this machine was faster, with the same files
                raise
    except OSError as error:
        raise EncoderError(f"{prefix!r} could not be downloaded to {folder}: {error}; run again.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(_WANTED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise EncoderError(
            f"encoder.model {model!r}: there is no folder of that name here, and as a Hugging Face id it could not be "
            f"downloaded ({type(error).__name__}: {str(error).splitlines()[0]}). Without a network, copy the model to "
            f"a folder and name that. {_NEXT_STEP}."
        ) from error


def assert_loadable(model: str, folder: Path) -> None:
    """Raise `EncoderError`, which calls the folder `model`, unless it holds safetensors weights and a tokenizer."""
    names = {path.name for path in folder.iterdir()}
    if not any(name.endswith(".safetensors") and name != HEADS_FILE for name in names):
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        why = f"only pickled weights ({', '.join(pickled)}), which can run code" if pickled else "no weights"
        raise EncoderError(
            f"encoder.model {model!r}: {folder} holds {why}; ray_profile loads model.safetensors only. "
            "Convert it once, on a machine you trust it on, with `AutoModel.from_pretrained(...).save_pretrained(...)`."
        )
    for needed in ("config.json", "tokenizer.json"):
        if needed not in names:
            raise EncoderError(
                f"encoder.model {model!r}: {folder} has no {needed}. "
                "Save model and fast tokenizer with `save_pretrained(...)` of transformers into one folder."
            )


def read_json(path: Path) -> dict[str, object]:
    """Read one JSON object of a model folder; an absent file is an empty one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EncoderError(f"{path} is no valid JSON ({error}); fetch the model again.") from error
    if not isinstance(value, dict):
        raise EncoderError(f"{path} holds no JSON object; fetch the model again.")
    return value

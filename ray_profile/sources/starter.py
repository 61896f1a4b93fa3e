"""The file that `ray-profile init` starts a shop with: every key, what it means, its default or an example."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ray_profile.config import Build, Cluster, Encoder, Privacy, Source, State, Taxonomy
from ray_profile.serve_config import Serve

_BARE = re.compile(r"[A-Za-z0-9_-]+")

_HEAD = """\
# ray_profile.toml: what `ray-profile build` reads, and where it keeps what it makes.
# A line that begins with `# ` and a key shows the default, or an example where there is none. Secrets never stand here.

# The folder or s3://BUCKET/PREFIX that holds all tables.
root = "profiles-root"

# One section a source: files of one shape. The name is yours, and must stay once its files are folded in.
[sources.reviews]
# Built-in formats: amazon-2014, amazon-2018, amazon-2023, amazon-2014-items, amazon-2018-items, amazon-2023-items,
# taobao; "columns" reads any CSV, JSON lines or Parquet by the map below.
format = "amazon-2014"
# Files, folders and globs (*, ?, [..], **), on this machine or s3://.
paths = ["reviews/*.parquet"]
"""

#: Section -> key -> what it means, and an example where the default is nothing.
_MEANINGS: dict[str, dict[str, tuple[str, object]]] = {
    "sources.NAME": {
        "kind": ("every row, where no column says it: review, search, view, favourite, cart, purchase", "review"),
        "timezone": ("of times without a zone, and of hours and weekdays", None),
        "time_format": ("strptime form; absent: ISO 8601 and the common forms are tried", "%d/%m/%Y %H:%M"),
        "time_unit": ("of numeric times: s, ms, us or ns; absent: by their magnitude", "ms"),
        "whole_days": ("true: times carry no hour; absent: a time of exactly 00:00:00 carries none", True),
        "delimiter": ("of a CSV", None),
        "multiline": ("whether quoted CSV fields may hold newlines; false lets large files be read in parts", None),
        "max_quarantine": ("share of a run's rows that may be bad; more of them stop the run", None),
    },
    "encoder": {
        "model": ("a folder, an s3:// prefix, a Hugging Face id, or weights that a package ships", None),
        "prefix": ("put before every text; e5 models want 'query: '", None),
        "pooling": ("mean, cls or last: as the model was trained", None),
        "max_length": ("tokens; longer texts are cut, and counted", None),
        "tokens_per_batch": ("padded tokens that the encoder takes at once", None),
        "dtype": ("auto, float32 or bf16", None),
    },
    "taxonomy": {
        "path": ("your own tags; absent: tags are the catalogue's categories", "taxonomy.toml"),
        "threshold": ("cosine from which a text carries a tag; absent: set for each tag from the encoder's noise", 0.4),
    },
    "privacy": {
        "key_file": (
            "the file with the key that turns user ids into pseudonyms (at least 16 random bytes)",
            "shop.key",
        ),
        "key_env": ("or the environment variable that holds it", "RAY_PROFILE_KEY"),
        "redact": ("take e-mail addresses, telephone and card numbers and the like out of texts", None),
    },
    "state": {
        "buckets": ("partitions of the user tables: 16 on one machine, about users / 50,000 on a cluster", None),
        "period": ("week, month, quarter or year: the grain of a user's state", None),
        "half_life_days": ("after so many days an action counts half", None),
    },
    "build": {
        "wave_gb": ("source gigabytes that are read and committed at once", None),
        "memory_gb": ("what --local holds of partial states before it writes them to local disk", None),
        "cpus": ("for Ray on this machine; absent: all", 8),
        "encoders": ("encoder workers; absent: one a GPU, one where there is none", 1),
        "gpus_per_encoder": ("absent: 1 where Ray has GPUs when a run starts, else 0", 0.0),
        "encoder_labels": ("of a cluster's nodes that encoders may run on; absent: on any", {"pool": "encode"}),
    },
    "cluster": {
        "cpus": ("what all its workers may have together; absent: what runs when a command starts", 288),
        "gpus": ("likewise", 12),
    },
    "serve": {
        "host": ("another one than this machine's own needs tokens", None),
        "port": ("where the endpoint listens", None),
        "tokens": (
            "who may ask, as `ray-profile token new` writes it; absent: anybody on this machine",
            "tokens.jsonl",
        ),
        "tls_certificate": ("PEM, with those between it and its authority; absent: no TLS", "server.pem"),
        "tls_key": ("its private key, in PEM", "server.key"),
        "proxy": ("haproxy or python; absent: haproxy where there are tokens. docs/serving.md: its ports", "haproxy"),
        "audit": ("who looked at whom, appended", None),
        "cache": ("where copies of an index on S3 lie", None),
        "replicas": ("of the look-ups: a number, or { min = 1, max = 4 } as the load wants them", None),
        "encoders": ("the same of the encoder, for /v1/embed and profiles:compute; 0: none is loaded", None),
        "refresh_seconds": ("between looks for a newer index", None),
    },
}

_SECTIONS: dict[str, tuple[type[BaseModel], str]] = {
    "encoder": (Encoder, "The text encoder. Another model, prefix, pooling or length needs a new root."),
    "taxonomy": (Taxonomy, "The shop's own tags."),
    "privacy": (Privacy, "Pseudonyms and redaction. Without a key, user ids pass unchanged."),
    "state": (State, "Fixed when the root is made."),
    "build": (Build, "How a run works; none of it changes what comes out."),
    "cluster": (Cluster, "What an autoscaling cluster may grow to, by its own file."),
    "serve": (Serve, "The endpoint, `ray-profile serve`. docs/serving.md says who may ask for what."),
}

_MAP = """
# A source of your own columns: contract column = the file's column, or a list of them. user_id and ts are needed;
# item_id with title, categories, brand, price or attributes alone makes a catalogue.
# [sources.orders]
# format = "columns"
# paths = ["s3://shop/orders/*.csv"]
# kind = "purchase"
# [sources.orders.columns]
# user_id = "customer"
# ts = "ordered_at"
# item_id = "sku"
# quantity = "pieces"
# price = "unit_price"
# order_id = "order"
# And where a column says what a row is (columns.kind), the file's words for it:
# [sources.orders.kinds]
# buy = "purchase"
# pv = "view"
"""

_TRAIN = """
# `ray-profile train`: the shop's own reviews fine-tune the encoder. docs/training.md says what each key does.
# [train]
# name = "encoder"
# objectives = { sentiment = 1.0, tags = 1.0, contrast = 0.5 }
# epochs = 2
# tokens_per_batch = 8192
# learning_rate = 2e-05
# max_length = 256
# workers = 2
# engine = "deepspeed"
# build uses the model, on a root without profiles of another encoder, where encoder.model is "root:encoder".
# [train.deepspeed]
# zero_stage = 1
# `ray-profile tune`: ranges that are searched for the best settings of [train].
# [tune]
# trials = 8
# search = { learning_rate = [5e-06, 0.0001] }
"""

_JWT = """
# Tokens of an outside issuer, beside or instead of our own.
# [serve.jwt]
# its public keys: a file, or an https:// address
# jwks = "https://id.example.com/.well-known/jwks.json"
# issuer = "https://id.example.com/"
# audience = "profiles"
# its word for what a token may -> our scopes
# scopes = { "profile-reader" = ["profiles:read", "why:read"] }
"""


def starter() -> str:
    """The commented file, valid as it stands: the minimal example, and every other key as a comment."""
    parts = [_HEAD, *_keys("sources.NAME", Source), _MAP]
    for name, (model, meaning) in _SECTIONS.items():
        parts += [f"\n# {meaning}\n# [{name}]\n", *_keys(name, model)]
    return "".join([*parts, _JWT, _TRAIN])


def toml(value: object) -> str:
    """A string, number, flag, list of strings, or table of them as TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{bare_key(key)} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(toml(each) for each in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def bare_key(key: str) -> str:
    """A key as TOML wants it: quoted where it is more than ASCII letters, digits, _ and -."""
    return key if _BARE.fullmatch(key) else toml(key)


def _keys(section: str, model: type[BaseModel]) -> list[str]:
    lines = []
    for name, (meaning, example) in _MEANINGS[section].items():
        default = model.model_fields[name].default
        assert default is not PydanticUndefined, f"{section}.{name} has no default to show"
        value = example if default is None else default
        lines.append(f"# {meaning}\n# {name} = {toml(value)}\n")
    return lines

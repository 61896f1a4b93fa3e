"""Trained models made by hand: heads whose every number is known, on the tiny encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ray_profile.encode.heads import Activation, Floats, Probe
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.encode.trained import Heads, TrainedTags

SETTINGS = {"prefix": "", "pooling": "mean", "max_length": 256}


def sentiment(weights: Any, bias: Any = (0.0, 0.0, 0.0)) -> Probe:
    """A trained sentiment head (3, D)."""
    return Probe(np.array(weights, np.float32), np.array(bias, np.float32), {}, source="model")


def tag_head(ids: Sequence[str], residual: Any, activation: Activation = "softmax", **more: Any) -> TrainedTags:
    """A trained tag head: scale 4, no bias and thresholds of a half, unless `more` says otherwise."""
    plain = {"bias": np.zeros(len(ids)), "threshold": np.full(len(ids), 0.5)}
    given: dict[str, Any] = {"scale": 4.0, "default_bias": 0.0, "default_threshold": 0.5, **plain, **more}
    given |= {name: np.array(given[name], np.float32) for name in plain}
    return TrainedTags(tuple(ids), np.array(residual, np.float32), activation=activation, **given)


def write_model(
    folder: Path,
    encoder: Path,
    heads: Heads | None,
    taxonomy: Taxonomy | None = None,
    described: Mapping[str, Any] | None = None,
) -> Path:
    """A finished model folder, as training leaves it: an encoder, heads and model.json."""
    shutil.copytree(encoder, folder)
    if heads is not None:
        (folder / "heads.safetensors").write_bytes(heads.to_bytes())
    known: dict[str, Any] = {"name": folder.name, "encoder": SETTINGS}
    if taxonomy is not None:
        known["taxonomy"] = [asdict(tag) for tag in taxonomy.tags]
    (folder / "model.json").write_text(json.dumps({**known, **(described or {})}, ensure_ascii=False), encoding="utf-8")
    return folder


def unit(rows: Any) -> Floats:
    """Rows made unit vectors, float32."""
    matrix = np.atleast_2d(np.asarray(rows, np.float32))
    vectors: Floats = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return vectors

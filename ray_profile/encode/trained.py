"""What a trained model knows beside vectors: heads.safetensors and model.json of its folder, read without torch.

Heads are applied to unit vectors v (D), as the finished encoder gives them:

    sentiment   p = softmax(W v + b), a `heads.Probe`
    tags        A_t = unit mean of the tag's text vectors + residual_t; logit_t = scale x (v . A_t) + bias_t;
                p = softmax over all tags, or sigmoid of each

Calibration is folded into weights, scale and biases. Axes: N rows, D width, T tags.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import save as save_safetensors

from ray_profile.config import Encoder
from ray_profile.encode.heads import (
    Activation,
    Encodes,
    Floats,
    Odds,
    Probe,
    TagMatrix,
    tag_vectors,
    unpacked,
)
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.encode.weights import HEADS_FILE, MODEL_FILE, read_json
from ray_profile.errors import EncoderError, TaxonomyError

#: Of `[encoder]`: what a model was trained with, so what its vectors and heads are right for.
SETTINGS = ("prefix", "pooling", "max_length")
_NEXT_STEP = "train the model again, or restore its folder from a copy"


@dataclass(frozen=True, eq=False)
class TrainedTags:
    """The tag head, of whatever taxonomy it was trained with; `matrix` makes it that of another one."""

    ids: tuple[str, ...]
    residual: Floats  # (T, D), added to the tags' text vectors
    bias: Floats  # (T,)
    threshold: Floats  # (T,), of a probability, above 0; above 1: never given
    scale: float
    default_bias: float  # of a tag that training never saw, as its threshold
    default_threshold: float
    activation: Activation

    def matrix(self, taxonomy: Taxonomy, encoder: Encodes) -> TagMatrix:
        """The tags of `taxonomy` by this head: `tags_of` gives calibrated probabilities."""
        return self.over(tuple(tag.id for tag in taxonomy.tags), tag_vectors(taxonomy, encoder))

    def over(self, tags: tuple[str, ...], vectors: Floats) -> TagMatrix:
        """The same where the tags' text vectors (T, D) are known already.

        A tag that training never saw has no residual, and the default bias and threshold.
        """
        place = {tag: at for at, tag in enumerate(self.ids)}
        at = np.array([place.get(tag, -1) for tag in tags], dtype=np.intp)
        residual = np.vstack([self.residual, np.zeros((1, vectors.shape[1]), np.float32)])
        bias = np.append(self.bias, np.float32(self.default_bias))
        threshold = np.append(self.threshold, np.float32(self.default_threshold))
        return TagMatrix(tags, vectors + residual[at], threshold[at], Odds(self.scale, bias[at], self.activation))


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of a model, either of which may be absent, and how they did on users whom training had not seen."""

    sentiment: Probe | None = None
    decision: Floats | None = None  # (3,); None: none of the three is favoured
    tags: TrainedTags | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def labels(self, p_N3: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        """The one sentiment to name for each row of probabilities (N,): argmax(log p + decision).

        Only reports need one; profiles add up the probabilities themselves.
        """
        with np.errstate(divide="ignore"):
            scores_N3 = np.log(p_N3) + (0 if self.decision is None else self.decision)
        chosen: npt.NDArray[np.intp] = scores_N3.argmax(1)
        return chosen

    def to_bytes(self) -> bytes:
        """The heads as one safetensors file: float32 tensors, all else in its metadata."""
        tensors: dict[str, Any] = {}
        said: dict[str, Any] = {"tags": [], "activation": None, "report": self.report}
        if self.sentiment is not None:
            tensors |= {"sentiment.weight": self.sentiment.weights, "sentiment.bias": self.sentiment.bias}
            tensors |= {"sentiment.decision": np.zeros(3) if self.decision is None else self.decision}
        if self.tags is not None:
            said |= {"tags": list(self.tags.ids), "activation": self.tags.activation}
            for name in _ARRAYS:
                tensors[f"tags.{name}"] = getattr(self.tags, name)
            for name in _NUMBERS:
                tensors[f"tags.{name}"] = np.array([getattr(self.tags, name)])
        tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
        return save_safetensors(tensors, metadata={"heads": json.dumps(said, sort_keys=True, ensure_ascii=False)})

    @classmethod
    def from_bytes(cls, data: bytes, where: str = HEADS_FILE) -> Heads:
        """Read `to_bytes` back. Raises `EncoderError`, which names `where`, for anything else."""
        try:
            tensors, metadata = unpacked(data)
            said = json.loads(metadata["heads"])
            ids, activation, report = said["tags"], said["activation"], said["report"]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise EncoderError(f"{where} holds no heads ({type(error).__name__}: {error}); {_NEXT_STEP}.") from error
        take = partial(_taken, tensors, where)
        heads = cls(report=report)
        if any(name.startswith("sentiment.") for name in tensors):
            weights, bias = take("sentiment.weight", (3, None)), take("sentiment.bias", (3,), may_exclude=True)
            probe = Probe(weights, bias, report, source="model")
            heads = replace(heads, sentiment=probe, decision=take("sentiment.decision", (3,)))
        if any(name.startswith("tags.") for name in tensors):
            heads = replace(heads, tags=_tags(take, ids, activation, where))
        return heads

    @classmethod
    def read(cls, folder: Path) -> Heads | None:
        """The heads of a model folder, or None where it has none. Raises `EncoderError` for broken ones, and for those
        of an encoder of another width."""
        path = folder / HEADS_FILE
        if not path.is_file():
            return None
        heads = cls.from_bytes(path.read_bytes(), str(path))
        width = read_json(folder / "config.json").get("hidden_size")
        widths: dict[str, int] = {}
        if heads.sentiment is not None:
            widths["sentiment.weight"] = heads.sentiment.weights.shape[1]
        if heads.tags is not None:
            widths["tags.residual"] = heads.tags.residual.shape[1]
        for name, its in widths.items():
            if its != width:
                raise EncoderError(
                    f"{path}: {name} is for vectors of {its} numbers, and the encoder beside it gives {width}; "
                    f"{_NEXT_STEP}."
                )
        return heads


def check(folder: Path) -> None:
    """Raise `EncoderError` where the heads or the model.json of a folder are not what a build can use."""
    if not (folder / MODEL_FILE).is_file():
        raise EncoderError(f"{folder} has no {MODEL_FILE}, so nobody knows how it was trained; {_NEXT_STEP}.")
    settled(Encoder(), folder)
    heads = Heads.read(folder)
    if heads is not None and heads.tags is not None:
        stored_taxonomy(folder)


def settled(settings: Encoder, folder: Path) -> Encoder:
    """`settings` with what the model of `folder` was trained with, wherever they leave the default.

    Raises `EncoderError` where they name another value. A folder without model.json changes nothing.
    """
    trained = read_json(folder / MODEL_FILE).get("encoder")
    if trained is None:
        return settings
    known = _checked(trained, folder)
    for name in SETTINGS:
        ours, theirs = getattr(settings, name), getattr(known, name)
        if name in settings.model_fields_set and ours != theirs:
            raise EncoderError(
                f"encoder.{name} = {ours!r}, but {settings.model!r} was trained with {theirs!r}; take encoder.{name} "
                f"out, or set it to {theirs!r}."
            )
    return settings.model_copy(update={name: getattr(known, name) for name in SETTINGS})


def stored_taxonomy(folder: Path) -> Taxonomy:
    """The taxonomy that the tags of a model folder were trained with. Raises `EncoderError` where there is none."""
    entries = read_json(folder / MODEL_FILE).get("taxonomy")
    try:
        return Taxonomy.restored(entries, f"{folder / MODEL_FILE}: taxonomy")
    except TaxonomyError as error:
        raise EncoderError(f"{error} Set taxonomy.path to your own file, or {_NEXT_STEP}.") from error


def _checked(trained: Any, folder: Path) -> Encoder:
    where = folder / MODEL_FILE
    if not isinstance(trained, Mapping) or any(name not in trained for name in SETTINGS):
        raise EncoderError(f"{where}: encoder = {trained!r} lacks one of {', '.join(SETTINGS)}; {_NEXT_STEP}.")
    try:
        return Encoder.model_validate({name: trained[name] for name in SETTINGS})
    except ValidationError as error:
        first = error.errors()[0]
        said = f"encoder.{first['loc'][0]} = {first['input']!r}: {first['msg']}"
        raise EncoderError(f"{where}: {said}; {_NEXT_STEP}.") from error


_ARRAYS = ("residual", "bias", "threshold")
_NUMBERS = ("scale", "default_bias", "default_threshold")


def _tags(take: Any, ids: Any, activation: Any, where: str) -> TrainedTags:
    if not isinstance(ids, list) or not all(isinstance(tag, str) for tag in ids) or len(set(ids)) < len(ids):
        raise EncoderError(f"{where}: tags = {ids!r} must be a list of different ids; {_NEXT_STEP}.")
    if activation not in get_args(Activation):
        raise EncoderError(f"{where}: activation = {activation!r} must be softmax or sigmoid; {_NEXT_STEP}.")
    count = len(ids)
    shapes = {"residual": (count, None), "bias": (count,), "threshold": (count,)}
    arrays = {name: take(f"tags.{name}", shapes[name]) for name in _ARRAYS}
    numbers = {name: take(f"tags.{name}", (1,)) for name in _NUMBERS}
    for name in ("threshold", "scale", "default_threshold"):
        least = {**arrays, **numbers}[name].min(initial=np.inf)
        if least <= 0:
            raise EncoderError(f"{where}: tags.{name} holds {least:g}, and must be above 0; {_NEXT_STEP}.")
    scale, default_bias, default_threshold = (float(numbers[name][0]) for name in _NUMBERS)
    return TrainedTags(
        tuple(ids), **arrays, scale=scale, default_bias=default_bias, default_threshold=default_threshold,
        activation=activation,
    )  # fmt: skip


def _taken(
    tensors: Mapping[str, npt.NDArray[Any]],
    where: str,
    name: str,
    shape: tuple[int | None, ...],
    may_exclude: bool = False,
) -> Floats:
    """A tensor of this shape (None: any width) in float32, all of it finite; but with `may_exclude` minus infinity may
    stand for a class that never occurred."""
    found = tensors.get(name)
    wanted = f"float32 ({', '.join('D' if size is None else str(size) for size in shape)})"
    if found is None:
        raise EncoderError(f"{where} lacks {name}, which must be {wanted}; {_NEXT_STEP}.")
    fits = found.ndim == len(shape) and all(size in (None, has) for size, has in zip(shape, found.shape, strict=True))
    if found.dtype != np.float32 or not fits or (shape[-1] is None and not found.shape[-1]):
        raise EncoderError(f"{where}: {name} is {found.dtype} {found.shape}, and must be {wanted}; {_NEXT_STEP}.")
    strange = ~np.isfinite(found) & ~(may_exclude & np.isneginf(found) & np.isfinite(found).any())
    if strange.any():
        raise EncoderError(f"{where}: {name} holds {found[strange][0]}, and must be finite; {_NEXT_STEP}.")
    return found

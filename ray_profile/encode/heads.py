"""What a text vector says: how a reviewer feels (a linear probe), and which of the shop's tags it is about.

Both come in two kinds: fitted on frozen vectors or by likeness, here; or trained with the encoder (trained.py).

Axes: N rows, D width of a vector, T tags. Vectors are unit vectors in float16.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_hash as plh
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.errors import EncoderError

Vectors = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]

Activation = Literal["softmax", "sigmoid"]

SENTIMENTS = ("negative", "neutral", "positive")
MIN_ROWS = 200
MIN_HELD_OUT = 30
MAX_ROWS = 50_000  # a linear probe learns no more from more rows, and fits in minutes
HELD_OUT_FIFTH = 5  # one user in five is held out
MAX_TAGS = 3
NOISE_SDS = 3.5


class Encodes(Protocol):
    """What a tag needs of an encoder; `text.TextEncoder` is one."""

    def encode(self, texts: pl.Series) -> Any:
        """Give an object whose `vectors` are the texts' unit vectors (N, D)."""
        ...


def sentiment_of_stars(ratings: npt.ArrayLike) -> Floats:
    """One-hot [negative, neutral, positive] of 1-5 stars, (N, 3); rows of NaN where there is no rating.

    1 and 2 stars are negative, 3 neutral, 4 and 5 positive; halves: up to 2.5 negative, below 3.5 neutral.
    """
    stars = np.asarray(ratings, dtype=np.float64).reshape(-1)
    hot = np.eye(3, dtype=np.float32)[np.where(stars <= 2.5, 0, np.where(stars < 3.5, 1, 2))]
    hot[np.isnan(stars)] = np.nan
    return hot


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe on frozen vectors: p = softmax(v W^T + b), and how it did on users it had not seen."""

    weights: Floats  # (3, D)
    bias: Floats  # (3,); -inf for a class that no row of the training set had
    report: dict[str, Any]
    source: str = "probe"  # what profiles call it; "model" where it was trained with the encoder

    @classmethod
    def fit(cls, vectors: Vectors, ratings: npt.ArrayLike, users: pl.Series) -> Probe | None:
        """Fit sentiment on N vectors with their stars (NaN: unrated, left out) and their users.

        One user in five, by hash, is held out with all rows. Of the settings tried, the one with the best held-out
        macro-F1 is kept, as fitted on the other users. None where there is nothing to learn (under 200 rated rows, one
        class, under 30 held-out rows) or where it does not beat "always the most common class": a higher macro-F1, at
        an accuracy at most one point lower. The report is of the rows that chose among four settings, so it flatters
        slightly. Of more than `MAX_ROWS` rows, users of the smallest hashes are used.
        """
        hot = sentiment_of_stars(ratings)
        hashes = user_hashes(users)
        rated = ~np.isnan(hot[:, 0])
        if rated.sum() > MAX_ROWS:
            rated &= hashes < np.partition(hashes[rated], MAX_ROWS)[MAX_ROWS]
        held = hashes[rated] % HELD_OUT_FIFTH == 0
        if rated.sum() < MIN_ROWS or held.sum() < MIN_HELD_OUT:
            return None
        x, y = vectors[rated].astype(np.float64), hot[rated].argmax(1)
        order = np.lexsort((x[:, 1], x[:, 0], y))  # the solver's last bits must not depend on the order of the files
        order = order[~held[order]]
        if len(np.unique(y[order])) < 2:
            return None
        majority = np.full(held.sum(), np.bincount(y[order]).argmax())
        floor = _scores(y[held], majority)
        fitted = [_fit(x[order], y[order], strength, weight) for strength, weight in _TRIED]
        scored = [(_scores(y[held], probe.predict(x[held]).argmax(1)), probe) for probe in fitted]
        scored = [s for s in scored if s[0]["accuracy"] >= floor["accuracy"] - 0.01 and s[0]["f1"] > floor["f1"]]
        if not scored:
            return None
        best, probe = max(scored, key=lambda pair: pair[0]["f1"])
        shares = np.abs(probe.predict(x[held]).mean(0) - np.bincount(y[held], minlength=3) / held.sum())
        probe.report.update(
            rows=int(order.size),
            held_out_rows=int(held.sum()),
            macro_f1=best["f1"],
            accuracy=best["accuracy"],
            majority_macro_f1=floor["f1"],
            majority_accuracy=floor["accuracy"],
            share_error=float(shares.max()),
        )
        return probe

    def predict(self, vectors: npt.NDArray[Any]) -> Floats:
        """Probabilities [negative, neutral, positive] of N vectors, (N, 3); their mean over rows is a share."""
        logits = vectors.astype(np.float32) @ self.weights.T + self.bias
        odds = np.exp(logits - logits.max(1, keepdims=True, initial=np.finfo(np.float32).min))
        shares: Floats = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
        return shares

    def to_bytes(self) -> bytes:
        """The probe as one safetensors file; the report is in its metadata."""
        tensors = {"weights": self.weights, "bias": self.bias}
        return save_safetensors(tensors, metadata={"report": json.dumps(self.report, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Probe:
        """Read `to_bytes` back; raises `EncoderError` for anything else."""
        try:
            tensors, said = unpacked(data)
            probe = cls(tensors["weights"], tensors["bias"], json.loads(said["report"]))
        except (SafetensorError, ValueError, KeyError) as error:
            raise EncoderError(f"the sentiment probe cannot be read ({error}); train it again.") from error
        if probe.weights.ndim != 2 or len(probe.weights) != 3 or probe.bias.shape != (3,):
            raise EncoderError("the sentiment probe has other shapes than (3, D) and (3,); train it again.")
        return probe

    @cached_property
    def digest(self) -> str:
        """SHA-256 (16 hex digits) over weights and bias."""
        return hashlib.sha256(self.weights.tobytes() + self.bias.tobytes()).hexdigest()[:16]


def unpacked(data: bytes) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises `SafetensorError` or `ValueError` for anything else."""
    tensors = load_safetensors(data)
    # The format: 8 bytes of length, then a JSON header (huggingface.co/docs/safetensors).
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__", {})


#: Inverse L2 strength and class weight.
_TRIED: tuple[tuple[float, Literal["balanced"] | None], ...] = (
    (1.0, None),
    (10.0, None),
    (1.0, "balanced"),
    (10.0, "balanced"),
)


def _fit(x: Floats, y: npt.NDArray[np.intp], strength: float, weight: Literal["balanced"] | None) -> Probe:
    """One fit. Balanced weights help the rare classes but inflate their probabilities; adding log(class share) to the
    bias takes the prior back, and the mean prediction is the true share again.

    Measured on 2,880 reviews of amazon_2023 (81 % positive), 575 held out, MiniLM, C = 10: unweighted macro-F1 .566,
    accuracy .890; balanced .572, .807, and 72 % predicted positive of 87 %; balanced and corrected .615, .894, 86 %.
    """
    from sklearn.linear_model import LogisticRegression  # a second of every worker's start, and only a fit needs it

    model = LogisticRegression(C=strength, class_weight=weight, max_iter=1000).fit(x, y)
    weights, bias = np.zeros((3, x.shape[1]), np.float32), np.full(3, -np.inf, np.float32)
    binary = len(model.classes_) == 2  # scikit-learn then keeps the second class's logit only
    at = model.classes_[1:] if binary else model.classes_
    bias[model.classes_] = 0
    weights[at], bias[at] = model.coef_, model.intercept_
    if weight is not None:
        bias[model.classes_] += np.log(np.bincount(y)[model.classes_] / len(y)).astype(np.float32)
    return Probe(weights, bias, {"C": strength, "class_weight": weight})


def _scores(truth: npt.NDArray[np.intp], guess: npt.NDArray[np.intp]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "f1": float(f1_score(truth, guess, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(truth, guess)),
    }


def user_hashes(users: pl.Series, skip: int = 0) -> npt.NDArray[np.int64]:
    """Each row's user as a 32-bit number from SHA-256: the same on every machine and in every order.

    `skip` hex digits of the digest come first, so that two choices among users have nothing to do with each other.
    """
    frame = pl.DataFrame({"user": users.cast(pl.String).fill_null("")})
    distinct = frame.unique().with_columns(
        hashed=plh.col("user").chash.sha2_256().str.slice(skip, 8).str.to_integer(base=16)
    )
    return frame.join(distinct, on="user", how="left", maintain_order="left")["hashed"].to_numpy()


def tag_vectors(taxonomy: Taxonomy, encoder: Encodes) -> Floats:
    """(T, D): of each tag the mean of the unit vectors of its texts (`Tag.texts`), made a unit again."""
    texts = pl.DataFrame(
        {"tag": [tag.id for tag in taxonomy.tags], "text": [list(tag.texts) for tag in taxonomy.tags]}, schema=_TEXTS
    )
    texts = texts.with_row_index("at").explode("text")
    encoded = np.asarray(encoder.encode(texts["text"]).vectors, dtype=np.float32)
    vectors = np.zeros((len(taxonomy.tags), encoded.shape[1]), dtype=np.float32)
    np.add.at(vectors, texts["at"].to_numpy(), encoded)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return vectors


@dataclass(frozen=True, eq=False)
class Odds:
    """How a text's products with the tags' vectors become probabilities: logit_t = scale x product_t + bias_t."""

    scale: float
    bias: Floats  # (T,)
    activation: Activation

    def __call__(self, products_NT: Floats) -> Floats:
        """Probabilities (N, T): over all tags together (softmax), or of each by itself (sigmoid)."""
        from scipy.special import expit, softmax  # a tenth of a second, and zero-shot tags need neither

        logits_NT = np.float32(self.scale) * products_NT + self.bias
        p_NT: Floats = softmax(logits_NT, axis=1) if self.activation == "softmax" else expit(logits_NT)
        return p_NT


@dataclass(frozen=True, eq=False)
class TagMatrix:
    """The tags of a taxonomy as an encoder sees them, with a threshold per tag on a text's score.

    Zero-shot (`build`) the score is the cosine with the tag's vector (`tag_vectors`); where the tags were trained
    (`trained.TrainedTags.matrix`) it is a calibrated probability.
    """

    tags: tuple[str, ...]
    vectors: Floats  # (T, D); unit vectors where zero-shot
    thresholds: Floats  # (T,), on the score
    odds: Odds | None = None

    @property
    def source(self) -> str:
        """What profiles call the tags that it gives."""
        return "zero-shot" if self.odds is None else "model"

    @classmethod
    def build(cls, taxonomy: Taxonomy, encoder: Encodes, threshold: float | None = None) -> TagMatrix:
        """Encode the taxonomy for zero-shot tagging. `threshold` (cosine) overrides those measured from the encoder's
        noise.

        The noise is a tag's similarity to 64 fixed English and Chinese review sentences that name no product. A tag's
        threshold is its mean noise, in the language that is nearer to the tag, plus `NOISE_SDS` standard deviations,
        pooled over the tags. So it depends on encoder and taxonomy alone, not on the corpus or the order of its files.

        Measured with tags that are nothing but the bare category names (precision / recall / rows with a tag):
        3,455 reviews of amazon_2023, 24 overlapping categories, MiniLM: .48 / .16 / .26; its 3,115 item titles, 34
        overlapping main categories: .31 / .20 / .42; 4,000 Chinese reviews of shopping_zh, 10 categories,
        multilingual-e5-small: .95 / .12 / .12 (at 2 standard deviations .87 / .32 / .35). Ranking by the margin instead
        of the bare cosine raises the best tag's accuracy from .328 to .355, .277 to .297 and .565 to .615. Quantiles,
        deviations per tag, the other tags' texts as noise, and centring gave about the same precision at equal
        coverage. Rule and constant were chosen on these same sets, so expect somewhat less on another shop's.
        """
        background, is_chinese = _background(encoder)
        tags = tuple(tag.id for tag in taxonomy.tags)
        vectors = tag_vectors(taxonomy, encoder)
        noise = [background[language] @ vectors.T for language in (~is_chinese, is_chinese)]
        mean_GT = np.stack([scores.mean(0) for scores in noise])
        nearer = mean_GT.argmax(0), np.arange(len(tags))
        variance = np.stack([scores.var(0) for scores in noise])[nearer]
        measured = mean_GT[nearer] + NOISE_SDS * np.sqrt(variance.mean() if tags else 0.0)
        thresholds = measured if threshold is None else np.full(len(tags), threshold)
        return cls(tags, vectors, thresholds.astype(np.float32))

    def tags_of(self, vectors: npt.NDArray[Any]) -> pl.DataFrame:
        """Tag N unit vectors: columns row u32, tag str, score f32, sorted by row, score (highest first), tag.

        A row has at most `MAX_TAGS` tags, those furthest above their thresholds (cosines by difference, probabilities
        by ratio); none where no tag reaches its own.
        """
        step = max(1, _SCORES_AT_ONCE // max(1, len(self.tags)))
        parts = [self._tag_block(vectors[at : at + step], at) for at in range(0, len(vectors), step)]
        row, tag, score = (np.concatenate([part[i] for part in parts] or [np.empty(0)]) for i in range(3))
        names = pl.Series("tag", self.tags, dtype=pl.String)
        return pl.DataFrame(
            {
                "row": pl.Series(row, dtype=pl.UInt32),
                "tag": names.gather(pl.Series(tag, dtype=pl.UInt32)),
                "score": pl.Series(score, dtype=pl.Float32),
            }
        ).sort("row", "score", "tag", descending=[False, True, False])

    def scores(self, vectors: npt.NDArray[Any]) -> Floats:
        """The score of every tag for N unit vectors, (N, T)."""
        products_NT: Floats = vectors.astype(np.float32) @ self.vectors.T
        return products_NT if self.odds is None else self.odds(products_NT)

    def _tag_block(self, vectors: npt.NDArray[Any], first: int) -> tuple[npt.NDArray[Any], ...]:
        if not self.tags:
            return np.empty(0), np.empty(0), np.empty(0)
        scores_NT = self.scores(vectors)
        above_NT = scores_NT - self.thresholds if self.odds is None else scores_NT / self.thresholds - 1
        best = np.argsort(-above_NT, axis=1, kind="stable")[:, :MAX_TAGS]
        rows, places = np.nonzero(np.take_along_axis(above_NT, best, 1) >= 0)
        tags = best[rows, places]
        return rows + first, tags, scores_NT[rows, tags]


_TEXTS: dict[str, Any] = {"tag": pl.String, "text": pl.List(pl.String)}
_SCORES_AT_ONCE = 16_000_000


def _background(encoder: Encodes) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Vectors of the noise sentences (M, D), and which of them are Chinese."""
    lines = Path(__file__).with_name("background.txt").read_text(encoding="utf-8").splitlines()
    texts = pl.Series([line for line in lines if line and not line.startswith("#")])
    return encoder.encode(texts).vectors.astype(np.float32), texts.str.contains(r"\p{Han}").to_numpy()

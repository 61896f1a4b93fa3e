"""Encoding: distinct real reviews to vectors, ours beside sentence-transformers, OpenVINO, ONNX Runtime and autocast.

    python benchmarks/encode.py [--full] [--data ../shared/data] [--out benchmarks/results]

Every round encodes reviews of its own, so that nothing is encoded twice: 5 x 800 of them, with --full 5 x 4,000. Tokens
are counted without padding, and every time is from strings to vectors. The peers but sentence-transformers, which is
timed as it is used, are given our tokenizer and batches of one length, with the batch size that suited them best.

The limit is the fastest matrix product this machine was seen to do in the same run, square or shaped as the encoder's
own; a share is that of the floating-point operations of the encoder's products alone.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import corpus
import measuring
import numpy as np
import polars as pl
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from ray_profile.config import Encoder
from ray_profile.encode import bert
from ray_profile.encode.batches import Ragged, batches
from ray_profile.encode.text import TextEncoder
from ray_profile.encode.tokens import Tokenizer
from ray_profile.encode.weights import read_json, resolve

ROUNDS = 5
PEER = "sentence-transformers, float32"
OURS = "ray_profile, bf16"
PEER_BATCH_TOKENS = 2048  # 1,024 to 8,192 were tried: OpenVINO and autocast are fastest here
SETTINGS = Encoder(dtype="bf16")

Work = Callable[[pl.Series], np.ndarray]


def sentence_transformers() -> Work:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(resolve(SETTINGS.model)), device="cpu", model_kwargs={"dtype": torch.float32})
    model.max_seq_length = SETTINGS.max_length
    return lambda texts: np.asarray(model.encode(texts.to_list(), normalize_embeddings=True))


def ours(dtype: str) -> Work:
    encoder = TextEncoder.load(SETTINGS.model_copy(update={"dtype": dtype}), device="cpu")
    return lambda texts: encoder.encode(texts).vectors


def in_batches(forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Work:
    """A peer that maps ids and mask (B, L) to unit vectors (B, D)."""
    tokenizer = Tokenizer.load(SETTINGS)

    def work(texts: pl.Series) -> np.ndarray:
        ids = tokenizer.tokenise(texts).ids
        offsets = ids.offsets.to_numpy()
        ragged = Ragged(ids.values.to_numpy(), offsets[:-1], np.diff(offsets))
        vectors = np.empty((len(texts), 384), np.float32)
        for rows in batches(ragged.lengths, PEER_BATCH_TOKENS):
            rectangle, _ = ragged.rectangle(rows)
            mask = np.arange(rectangle.shape[1]) < ragged.lengths[rows, None]
            vectors[rows] = forward(torch.from_numpy(rectangle), torch.from_numpy(mask).long()).numpy()
        return vectors

    return work


class Pooled(torch.nn.Module):
    """transformers' model with the pooling of sentence-transformers."""

    def __init__(self, attention: str = "sdpa") -> None:
        super().__init__()
        from transformers import AutoModel

        self.model = AutoModel.from_pretrained(resolve(SETTINGS.model), attn_implementation=attention).eval()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h_BLD = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        weight_BL1 = mask.unsqueeze(-1).float()
        return functional.normalize((h_BLD * weight_BL1).sum(1) / weight_BL1.sum(1), dim=1)


def autocast() -> Work:
    model = Pooled()

    @torch.inference_mode()
    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(ids, mask)

    return in_batches(forward)


def openvino(precision: str) -> Work:
    import openvino

    example = (torch.ones(2, 8, dtype=torch.long),) * 2
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    options["ENABLE_CPU_PINNING"] = False
    compiled = openvino.compile_model(openvino.convert_model(Pooled(), example_input=example), "CPU", options)
    return in_batches(lambda ids, mask: torch.from_numpy(compiled([ids.numpy(), mask.numpy()])[0]))


def onnxruntime() -> Work:
    import onnxruntime

    axes = {name: {0: "batch", 1: "length"} for name in ("ids", "mask")} | {"vectors": {0: "batch"}}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        example = (torch.ones(2, 8, dtype=torch.long),) * 2
        names = {"input_names": ["ids", "mask"], "output_names": ["vectors"], "dynamic_axes": axes}
        torch.onnx.export(Pooled("eager"), example, path, dynamo=False, **names)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options)
    return in_batches(
        lambda ids, mask: torch.from_numpy(session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0])
    )


def limits() -> dict[str, dict[str, float]]:
    """GFLOP/s of the fastest product in each dtype, square and shaped as the encoder's (its four products)."""
    width, hidden = 384, 1536
    shapes = [(1024, width, 3 * width), (1024, width, width), (1024, width, hidden), (1024, hidden, width)]
    found: dict[str, dict[str, float]] = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        square = max(gflops([(size, size, size)], dtype) for size in (1024, 2048, 4096))
        found[name] = {"square": round(square, 1), "shape_matched": round(gflops(shapes, dtype), 1)}
    return found


@torch.inference_mode()
def gflops(shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> float:
    """The rate of some products (M, K) x (K, N), one after the other, by the faster of torch's two libraries."""
    operands = [
        (torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype), torch.zeros(n, dtype=dtype)) for m, k, n in shapes
    ]
    ways: list[list[Callable[[], Any]]] = [
        [partial(functional.linear, x, w) for x, w, _ in operands],
        [partial(bert.Linear(w, b, dtype), x) for x, w, b in operands],
    ]
    took = []
    for way in ways:
        for _ in range(12):
            began = time.perf_counter()
            for product in way:
                product()
            took.append(time.perf_counter() - began)
    return sum(2 * m * k * n for m, k, n in shapes) / min(took) / 1e9


def operations(lengths: np.ndarray) -> float:
    """Floating-point operations of the encoder's products on texts of these many tokens."""
    described = read_json(resolve(SETTINGS.model) / "config.json")
    width, hidden, layers = (int(described[k]) for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    per_token = 2 * (4 * width**2 + 2 * width * hidden)
    return float(layers * (per_token * lengths + 4 * width * lengths.astype(float) ** 2).sum())


class Rounds:
    """Gives a work one part of the corpus a round, and keeps the vectors."""

    def __init__(self, work: Work, parts: list[pl.Series]) -> None:
        self._work = work
        self._parts: Iterator[pl.Series] = iter(parts)
        self.vectors: list[np.ndarray] = []

    def __call__(self) -> None:
        self.vectors.append(self._work(next(self._parts)))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def works(full: bool) -> dict[str, Work]:
    few = {PEER: sentence_transformers(), OURS: ours("bf16"), "OpenVINO, bf16": openvino("bf16")}
    if not full:
        return few
    more = {"ray_profile, float32": ours("float32"), "OpenVINO, float32": openvino("f32")}
    return few | more | {"torch autocast, bf16": autocast(), "ONNX Runtime, float32": onnxruntime()}


def main() -> None:
    arguments = measuring.arguments(__doc__).parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    size = 4_000 if arguments.full else 800
    texts = corpus.review_texts(arguments.data)["text"].sample(ROUNDS * size, seed=0, shuffle=True)
    parts = [texts[at : at + size] for at in range(0, len(texts), size)]
    warm = corpus.review_texts(arguments.data)["text"].head(64)
    ready = {}
    for name, work in works(arguments.full).items():
        work(warm)  # what a first call builds is start-up, which startup.py measures
        ready[name] = Rounds(work, parts)
    tokenizer = Tokenizer.load(SETTINGS)
    lengths = [np.diff(tokenizer.tokenise(part).ids.offsets.to_numpy()) for part in parts]
    seconds, _ = measuring.in_turn(ready, ROUNDS)
    tokenising, _ = measuring.in_turn({"tokenise": lambda: [tokenizer.tokenise(part) for part in parts]}, 3)
    limit = limits()
    wanted = np.concatenate(ready[PEER].vectors)
    rows = {
        name: row(name, took, lengths, limit, cosines(np.concatenate(ready[name].vectors), wanted))
        for name, took in seconds.items()
    }
    ratios = {
        "over_sentence_transformers": speedup(seconds, PEER),
        "over_openvino_bf16": speedup(seconds, "OpenVINO, bf16"),
        "cosine_min": rows[OURS]["cosine_min"],
        "tokenising_share": median(tokenising["tokenise"]) / sum(seconds[OURS]),
        "share_of_shape_matched_limit": rows[OURS]["share_of_shape_matched_limit"],
    }
    body = {
        "what": f"{len(texts):,} distinct reviews of {np.concatenate(lengths).mean():.1f} tokens, all-MiniLM-L6-v2",
        "machine": measuring.machine("torch", "transformers", "sentence-transformers", "openvino", "onnxruntime"),
        "threads": torch.get_num_threads(),
        "limits_gflops": limit,
        "works": rows,
    }
    show(body, ratios)
    measuring.finish("encode", body, ratios, arguments.out, arguments.full)


def row(
    name: str, took: list[float], lengths: list[np.ndarray], limit: dict[str, dict[str, float]], alike: np.ndarray
) -> dict[str, float]:
    """One work's figures; rates are the medians of its rounds."""
    rate = median(operations(each) / s / 1e9 for each, s in zip(lengths, took, strict=True))
    most = limit[name.rsplit(" ", 1)[1]]
    return {
        **measuring.summary(took),
        "tokens_per_second": round(median(each.sum() / s for each, s in zip(lengths, took, strict=True))),
        "rows_per_second": round(median(len(each) / s for each, s in zip(lengths, took, strict=True)), 1),
        "gflops": round(rate, 1),
        "share_of_square_limit": round(rate / most["square"], 3),
        "share_of_shape_matched_limit": round(rate / most["shape_matched"], 3),
        "cosine_mean": round(float(alike.mean()), 6),
        "cosine_min": round(float(alike.min()), 6),
    }


def speedup(seconds: dict[str, list[float]], over: str) -> float:
    """How much faster ours is: the median over rounds, in each of which both encode the same texts."""
    return median(theirs / mine for theirs, mine in zip(seconds[over], seconds[OURS], strict=True))


def show(body: dict[str, Any], ratios: dict[str, float]) -> None:
    """The table and the ratios."""
    table = Table(box=box.SIMPLE_HEAD, title=body["what"])
    table.add_column("", no_wrap=True)
    for name in ("tokens/s", "rows/s", "x peer", "% of limit", "cosine mean", "min"):
        table.add_column(name, justify="right")
    peer = body["works"][PEER]["tokens_per_second"]
    for name, row in body["works"].items():
        table.add_row(
            name,
            f"{row['tokens_per_second']:,}",
            f"{row['rows_per_second']:,}",
            f"{row['tokens_per_second'] / peer:.2f}",
            f"{row['share_of_shape_matched_limit']:.0%}",
            f"{row['cosine_mean']:.5f}",
            f"{row['cosine_min']:.5f}",
        )
    console = Console(width=120)
    console.print(table)
    console.print("limits, GFLOP/s:", body["limits_gflops"])
    console.print({name: round(value, 4) for name, value in ratios.items()})


if __name__ == "__main__":
    main()

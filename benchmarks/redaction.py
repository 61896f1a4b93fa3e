"""Redaction: recall by kind on published sentences, false positives and speed on real reviews.

    python benchmarks/redaction.py [--data ../shared/data] [--presidio PYTHON] [--out benchmarks/results]

Recall: a span counts as found when it is covered whole. The words that announce a telephone number were chosen with
these sentences in view, so that kind's recall is that of the set it was tuned on; the others rest on checksums.
False positives: every string that `redact` took out of these corpora was read by a person. The first reading found 10
false ones (order and part numbers, a version, a path, lists of models and years) and the rules were mended until none
was left, so the rate below is that of the sets the rules were mended on. The last four corpora were read after the
rest was mended: 3 in 36,869 rows (with two more sets of product names), .8 per 10,000.
`--presidio` names a Python that has presidio-analyzer; its pattern recognisers then run on the same sentences.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from ray_profile.sources.clean import clean
from ray_profile.sources.redact import find, redact

CLAIMED = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CARD",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP",
    "US_SSN": "SSN",
}
#: Name -> file, column, and how many strings `redact` took out when a person read them all and found each of the kind
#: that its marker says (a shop's own hotline counts as a telephone number). More than that is counted as false.
CORPORA = {
    "music reviews": ("amazon_musical/reviews.parquet", "reviewText", 1),
    "music review titles": ("amazon_musical/reviews.parquet", "summary", 9),
    "clothing reviews": ("womens_clothing/reviews.parquet", "Review Text", 0),
    "Chinese reviews": ("shopping_zh/reviews.parquet", "review", 68),
    "Amazon 2023 reviews": ("amazon_2023/reviews.parquet", "text", 0),
    "Amazon 2023 item titles": ("amazon_2023/items.parquet", "title", 0),
    "hotel reviews": ("deceptive_opinion/deceptive-opinion.csv", "text", 0),
    "beauty item texts": ("amazon_seqrec/Beauty_items.parquet", "text", 0),
}

_PRESIDIO = """
import importlib, json, logging, sys
logging.disable(logging.CRITICAL)
names = dict(EMAIL_ADDRESS="Email", PHONE_NUMBER="Phone", CREDIT_CARD="CreditCard", IBAN_CODE="Iban", IP_ADDRESS="Ip",
             US_SSN="UsSsn")
module = importlib.import_module("presidio_analyzer.predefined_recognizers")
tools = {kind: getattr(module, name + "Recognizer")() for kind, name in names.items()}
texts = json.load(sys.stdin)
print(json.dumps([[(hit.start, hit.end) for kind, tool in tools.items() for hit in tool.analyze(text, [kind], None)]
                  for text in texts]))
"""


def covered(sentences: list[dict[str, Any]], spans: list[list[tuple[int, int]]]) -> dict[str, dict[str, int]]:
    """Found and total of every kind of span in the sentences, claimed or not."""
    found: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for sentence, hits in zip(sentences, spans, strict=True):
        for span in sentence["spans"]:
            start, end, kind = span["start_position"], span["end_position"], span["entity_type"]
            total[kind] += 1
            found[kind] += any(low <= start and high >= end for low, high in hits)
    return {kind: {"found": found[kind], "total": total[kind]} for kind in sorted(total)}


def spurious(sentences: list[dict[str, Any]], spans: list[list[tuple[int, int]]]) -> int:
    """Removed stretches that overlap no span of a claimed kind."""
    return sum(
        not any(
            span["entity_type"] in CLAIMED and low < span["end_position"] and high > span["start_position"]
            for span in sentence["spans"]
        )
        for sentence, hits in zip(sentences, spans, strict=True)
        for low, high in hits
    )


def peer_spans(python: str | None, texts: list[str]) -> list[list[tuple[int, int]]] | None:
    """Spans of presidio-analyzer's pattern recognisers, or None where no Python with it is named."""
    if python is None:
        return None
    run = subprocess.run([python, "-c", _PRESIDIO], input=json.dumps(texts), text=True, capture_output=True, check=True)
    spans: list[list[tuple[int, int]]] = json.loads(run.stdout)
    return spans


def rows_per_second(texts: pl.Series) -> int:
    """Best of five runs of `redact`."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        redact(texts)
        best = min(best, time.perf_counter() - start)
    return round(len(texts) / best)


def reviews(data: Path) -> dict[str, dict[str, Any]]:
    """What was taken out of each corpus of real reviews, and how fast."""
    results: dict[str, dict[str, Any]] = {}
    for name, (file, column, read) in CORPORA.items():
        path = data / file
        raw = (pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path))[column]
        start = time.perf_counter()
        texts = clean(raw)
        clean_seconds = time.perf_counter() - start
        changed = texts.filter(redact(texts).ne_missing(texts)).to_list()
        taken = [(marker, text[low:high]) for text in changed for low, high, marker in find(text)]
        untouched = texts.filter(redact(texts).eq_missing(texts))
        results[name] = {
            "rows": len(texts),
            "taken": dict(Counter(marker for marker, _ in taken)),
            "false_per_10k_rows": round(max(0, len(taken) - read) / len(texts) * 10_000, 2),
            "clean_rows_per_second": round(len(raw) / clean_seconds),
            "redact_rows_per_second": rows_per_second(texts),
            "redact_rows_per_second_without_candidates": rows_per_second(untouched),
        }
    return results


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"cores": os.cpu_count(), "cpu": model}


def show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table("kind", "found", "presidio", title="Recall on published sentences")
    for kind, count in result["recall"].items():
        peer = result["peer"]["recall"][kind] if result["peer"] else None
        ours = f"{count['found']}/{count['total']}" if kind in CLAIMED else f"not covered ({count['total']})"
        table.add_row(kind, ours, f"{peer['found']}/{peer['total']}" if peer and kind in CLAIMED else "absent")
    console.print(table)
    table = Table("reviews", "rows", "taken out", "false / 10k", "clean rows/s", "redact rows/s", title="Real reviews")
    for name, row in result["reviews"].items():
        speeds = (f"{row['clean_rows_per_second']:,}", f"{row['redact_rows_per_second']:,}")
        table.add_row(name, f"{row['rows']:,}", str(row["taken"]), str(row["false_per_10k_rows"]), *speeds)
    console.print(table)
    console.print(f"rows that all hold something: {result['rows_per_second_all_candidates']:,} rows/s")
    if not result["peer"]:
        console.print("presidio-analyzer: absent (name a Python that has it with --presidio)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared/data")
    parser.add_argument("--presidio", help="a Python executable that has presidio-analyzer")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if not args.data.is_dir():
        sys.exit(f"{args.data} is no folder; name the folder of the review sets with --data")
    sentences = json.loads((args.data / "presidio_pii/synth_dataset_v2.json").read_text(encoding="utf-8"))
    texts = [sentence["full_text"] for sentence in sentences]
    ours = [[(low, high) for low, high, _ in find(text)] for text in texts]
    theirs = peer_spans(args.presidio, texts)
    busy = pl.Series(texts).filter(redact(pl.Series(texts)) != pl.Series(texts))
    result = {
        "what": "redaction of personal data: recall, false positives, speed",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "sentences": len(texts),
        "claimed": sorted(CLAIMED),
        "recall": covered(sentences, ours),
        "spurious": spurious(sentences, ours),
        "peer": {
            "name": "presidio-analyzer",
            "recall": covered(sentences, theirs),
            "spurious": spurious(sentences, theirs),
        }
        if theirs is not None
        else None,
        "rows_per_second_all_candidates": rows_per_second(pl.concat([busy] * 20)),
        "reviews": reviews(args.data),
    }
    show(result)
    cpu = "".join(c if c.isalnum() else "-" for c in result["machine"]["cpu"].lower()).strip("-")  # type: ignore[index]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"redaction_{cpu}_{result['date']}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The report's pictures: one PNG each, drawn without a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

MAX_TAGS = 30
INK, OURS, THEIRS = "#333333", "#3366aa", "#bbbbbb"
#: Fonts that have Han characters, wherever they may be installed.
_CHINESE = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC", "SimHei")


def confusion(table: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Who was taken for whom: rows are the truth, each as shares of its own."""
    counts = np.asarray(table)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = _figure(2 + 0.55 * len(names), 1.6 + 0.5 * len(names))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), labels=_readable(names), rotation=45 if len(names) > 4 else 0, ha="right")
    axes.set_yticks(range(len(names)), labels=_readable(names))
    axes.set_xlabel("said")
    axes.set_ylabel("true")
    if len(names) <= 12:
        for row in range(len(names)):
            for column in range(len(names)):
                colour = "white" if shares[row, column] > 0.5 else INK
                axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path)


def reliability(bins: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """How often what was said with some probability was right, and of how many rows that is."""
    figure, axes = _figure(4.5, 4.2)
    axes.plot([0, 1], [0, 1], color=THEIRS, linewidth=1)
    most = max((each["rows"] for each in bins), default=1)
    x, y = [each["confidence"] for each in bins], [each["frequency"] for each in bins]
    axes.plot(x, y, color=OURS, linewidth=1)
    axes.scatter(x, y, [15 + 150 * each["rows"] / most for each in bins], color=OURS, alpha=0.8)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability said", ylabel="share that was right", title=title)
    figure.savefig(path)


def curves(points: Sequence[Mapping[str, float]], names: Sequence[str], ylabel: str, path: Path) -> None:
    """Numbers by step."""
    figure, axes = _figure(6.5, 3.6)
    for name in names:
        known = [(point["step"], point[name]) for point in points if name in point]
        if known:
            marker = "o" if len(known) < 30 else None
            axes.plot(
                *zip(*known, strict=True), label=name.replace("_", " "), marker=marker, markersize=3, linewidth=1.2
            )
    axes.set(xlabel="step", ylabel=ylabel)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def tag_scores(tags: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """F1 of the tags with most rows."""
    chosen = sorted(tags, key=lambda tag: -tags[tag]["support"])[:MAX_TAGS]
    figure, axes = _figure(6, 1.2 + 0.24 * len(chosen))
    axes.barh(range(len(chosen)), [tags[tag]["f1"] or 0 for tag in chosen], color=OURS)
    axes.set_yticks(range(len(chosen)), labels=_readable(chosen), fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="F1")
    for at, tag in enumerate(chosen):
        axes.text(0.01, at, f"{tags[tag]['support']:,} rows", va="center", fontsize=7, color="white")
    figure.savefig(path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # the object's own interface: no window, no state of the process

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _readable(names: Sequence[str]) -> list[str]:
    """Names that the font can write: those that it cannot become numbers, which the report's table explains."""
    if all(name.isascii() for name in names) or _chinese_font():
        return list(names)
    return [name if name.isascii() else f"tag {at}" for at, name in enumerate(names)]


@lru_cache(maxsize=1)
def _chinese_font() -> bool:
    import matplotlib
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    found = next((name for name in _CHINESE if name in there), None)
    if found is not None:
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", found]
    return found is not None

"""The report's pictures: one PNG each, drawn without a screen, and without touching matplotlib's global state.

A name is written in a font of this machine that has its letters; where none has them, its number in the report's tables
stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

MAX_TAGS = 30
MAX_NAME = 28  # characters of a name
INK, OURS, THEIRS = "#333333", "#3366aa", "#bbbbbb"
_PLAIN = "DejaVu Sans"  # comes with matplotlib


def confusion(table: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Who was taken for whom: rows are the truth, each as shares of its own."""
    counts = np.asarray(table)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    beside = 0.09 * min(MAX_NAME, max(map(len, names)))  # inches that the names take
    figure, axes = _figure(1.3 + beside + 0.55 * len(names), 1.1 + beside * (len(names) > 4) + 0.5 * len(names))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _name(axes.xaxis, names)
    _name(axes.yaxis, names)
    if len(names) > 4:
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
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
        known = [(point["step"], point[name]) for point in points if isfinite(point.get(name, float("nan")))]
        if known:
            marker = "o" if len(known) < 30 else None
            axes.plot(
                *zip(*known, strict=True), label=name.replace("_", " "), marker=marker, markersize=3, linewidth=1.2
            )
    axes.set(xlabel="step", ylabel=ylabel)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def tag_scores(tags: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """F1 of the tags with most rows."""
    numbers = {tag: at for at, tag in enumerate(tags)}
    chosen = sorted(tags, key=lambda tag: -tags[tag]["support"])[:MAX_TAGS]
    figure, axes = _figure(6, 1.2 + 0.24 * len(chosen))
    axes.barh(range(len(chosen)), [tags[tag]["f1"] or 0 for tag in chosen], color=OURS)
    _name(axes.yaxis, chosen, [numbers[tag] for tag in chosen])
    axes.tick_params(axis="y", labelsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="F1; beside it the rows with the tag")
    for at, tag in enumerate(chosen):
        axes.text(1.01, at, f"{tags[tag]['support']:,}", va="center", fontsize=7, color=INK)
    figure.savefig(path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # the object's own interface: no window, no state of the process

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _name(axis: Any, names: Sequence[str], numbers: Sequence[int] | None = None) -> None:
    """Ticks 0, 1 ... with the names beside them; a name is text, whatever dollars and backslashes it has."""
    families = [_families(name) for name in names]
    places = numbers or range(len(names))
    labels = [
        f"tag {at}" if family is None else _short(name)
        for name, family, at in zip(names, families, places, strict=True)
    ]
    axis.set_ticks(range(len(names)))
    axis.set_ticklabels(labels, parse_math=False)
    for text, family in zip(axis.get_ticklabels(), families, strict=True):
        text.set_fontfamily(family or (_PLAIN,))


def _short(name: str) -> str:
    """Both ends of a long name: paths of categories differ in the last, model names in the first."""
    half = MAX_NAME // 2
    return name if len(name) <= MAX_NAME else f"{name[:half]}…{name[1 - half :]}"


@cache
def _families(text: str) -> tuple[str, ...] | None:
    """Font families that have all letters of a text together; None where this machine has none with the rest."""
    from matplotlib import font_manager

    wanted = frozenset(map(ord, text)) - _letters(font_manager.findfont(_PLAIN))
    if not wanted:
        return (_PLAIN,)
    found = next((family for family, path in _installed() if wanted <= _letters(path)), None)
    return None if found is None else (_PLAIN, found)


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    """A family and its most regular upright file, for each on this machine; sans ones first, which suit the rest."""
    from matplotlib import font_manager

    def unlike(font: Any) -> tuple[bool, float, str]:
        weight = font_manager.weight_dict.get(font.weight, font.weight)
        return "Sans" not in font.name, abs(float(weight) - 400), font.fname

    found: dict[str, str] = {}
    for font in sorted(font_manager.fontManager.ttflist, key=unlike):
        if font.style == "normal" and not font.name.startswith("Last Resort"):  # boxes for all letters
            found.setdefault(font.name, font.fname)
    return tuple(found.items())


@cache
def _letters(path: str) -> frozenset[int]:
    """Code points that a font has; none of a file that cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()

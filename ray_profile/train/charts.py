"""Pictures of a report, one PNG each. Figures are objects of their own: nothing here touches matplotlib's global state.

A name is written in a font of this machine that has its letters. Where no font has them, its number (from 1, as in the
tables of the report) stands for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

MAX_BARS = 30
MAX_LABEL = 28  # characters of a name
_WIDTH = 7.0  # inches
_DPI = 150
_INK, _FAINT = "#222222", "#8a8a8a"
#: Told apart by people who see few colours, and in grey (Okabe and Ito 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")


def confusion(path: Path, table: Sequence[Sequence[int]], names: Sequence[str], title: str) -> None:
    """Rows are the truth, columns the prediction; the colour is the share of a row, the number counts."""
    counts = np.asarray(table, np.float64)
    rows = counts.sum(1, keepdims=True)
    shares = np.divide(counts, rows, out=np.zeros_like(counts), where=rows > 0)
    size = len(names)
    side = max(4.2, min(14.0, 1.8 + 0.42 * size + 0.06 * max(len(name) for name in names)))
    figure, axes = _figure(side + 0.9, side)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the row")
    axes.set(xlabel="predicted", ylabel="truth")
    axes.set_title(title)
    _name_ticks(axes.xaxis, names)
    _name_ticks(axes.yaxis, names)
    if size > 4:
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    letters = max(4.0, min(11.0, 150 / max(size, 1)))
    for i, j in np.ndindex(size, size):
        if counts[i, j] or size <= 12:
            ink = "white" if shares[i, j] > 0.55 else _INK
            axes.text(j, i, f"{int(counts[i, j]):,}", ha="center", va="center", fontsize=letters, color=ink)
    _save(figure, path)


def reliability(path: Path, bins: Mapping[str, Sequence[Mapping[str, float]]], title: str) -> None:
    """How often what had a probability came true, over the bins of `metrics`; below, how many rows a bin has.

    Whiskers are the 95 % Wilson interval of a bin's frequency; a bin whose whisker misses the diagonal is wrong.
    """
    figure, (axes, below) = _figure(_WIDTH, 6.6, rows=2, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle=":")
    for at, (name, each) in enumerate(bins.items()):
        if not each:
            continue
        confidence = np.array([one["confidence"] for one in each])
        frequency = np.array([one["frequency"] for one in each])
        rows = np.array([one["rows"] for one in each])
        low, high = _wilson(frequency, rows)
        style = {"color": _COLOURS[at % len(_COLOURS)], "linestyle": _DASHES[at % len(_DASHES)]}
        axes.plot(confidence, frequency, marker="o", markersize=4, linewidth=1.4, label=_label(name, at), **style)
        axes.vlines(confidence, low, high, color=style["color"], linewidth=1, alpha=0.6)
        below.plot(confidence, rows, marker="o", markersize=3, linewidth=1, **style)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="how often it was so")
    axes.set_title(title)
    below.set(xlim=(-0.02, 1.02), xlabel="probability (mean of the bin)", ylabel="rows")
    if any(bins.values()):
        below.set_yscale("log")
        _legend(axes, bins)
    _save(figure, path)


def curves(path: Path, points: Sequence[Mapping[str, Any]], title: str) -> None:
    """Above, the losses by step; below, what was measured on the validation users."""
    drawn = [name for point in points for name in point]
    losses = [name for name in dict.fromkeys(drawn) if name == "loss" or name.startswith("loss_")]
    judged = [name for name in dict.fromkeys(drawn) if name == "score" or name.startswith("validation_")]
    figure, panels = _figure(_WIDTH, 6.6, rows=2)
    for axes, names, prefix, label in (
        (panels[0], losses, "loss_", "loss"),
        (panels[1], judged, "validation_", "score"),
    ):
        for at, name in enumerate(names):
            kept = [(point["step"], point[name]) for point in points if _is_number(point.get(name))]
            marker = "o" if len(kept) <= 40 else None
            shown = name.removeprefix(prefix)
            colour, dash = _COLOURS[at % len(_COLOURS)], _DASHES[at % len(_DASHES)]
            steps, values = zip(*kept, strict=True) if kept else ((), ())
            axes.plot(steps, values, color=colour, linestyle=dash, marker=marker, markersize=3, label=shown)
        axes.set_ylabel(label)
        if names:
            _legend(axes, names)
    panels[0].set_title(title)
    panels[1].set_xlabel("step")
    _save(figure, path)


def tag_bars(path: Path, tags: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """F1 of the at most `MAX_BARS` tags with the most rows, the best above; behind it the precision and the recall."""
    numbers = {name: at for at, name in enumerate(tags)}
    held = [(name, row) for name, row in tags.items() if row["support"]]
    most = sorted(held, key=lambda pair: -pair[1]["support"])[:MAX_BARS]
    shown = sorted(most, key=lambda pair: pair[1]["f1"])
    figure, axes = _figure(_WIDTH, max(2.4, 1.3 + 0.26 * len(shown)))
    places = np.arange(len(shown))
    axes.barh(places, [row["f1"] for _, row in shown], color=_COLOURS[5], height=0.72, label="F1")
    for name, marker, colour in (("precision", "|", _COLOURS[1]), ("recall", "x", _COLOURS[0])):
        values = [row[name] for _, row in shown]
        axes.scatter(values, places, marker=marker, color=colour, s=36, linewidths=1.6, label=name, zorder=3)
    for place, (_, row) in zip(places, shown, strict=True):
        axes.text(1.01, place, f"{row['support']:,}", va="center", fontsize=8, color=_FAINT)
    axes.set(xlim=(0, 1), ylim=(-0.6, max(len(shown), 1) - 0.4), xlabel="F1; grey: rows with the tag")
    left = len(held) - len(shown)
    axes.set_title(f"{title}, the {len(shown)} most frequent of {len(held)} tags" if left else title)
    _name_ticks(axes.yaxis, [name for name, _ in shown], [numbers[name] for name, _ in shown])
    if shown:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    _save(figure, path)


def _figure(width: float, height: float, rows: int = 1, height_ratios: Sequence[float] | None = None) -> Any:
    """A figure and its panel, or panels from above, which then share the x axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    panels = figure.subplots(rows, 1, sharex=rows > 1, height_ratios=height_ratios)
    for axes in np.atleast_1d(panels):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    return figure, panels


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})  # the same picture gives the same bytes


def _legend(axes: Any, names: Iterable[str]) -> None:
    legend = axes.legend(frameon=False, fontsize=9)
    for text, name in zip(legend.get_texts(), names, strict=False):
        text.set_fontfamily(_families(name) or _PLAIN)


def _name_ticks(axis: Any, names: Sequence[str], numbers: Sequence[int] | None = None) -> None:
    labels = [_label(name, at) for name, at in zip(names, numbers or range(len(names)), strict=True)]
    axis.set_ticks(np.arange(len(names)), labels)
    for text, name in zip(axis.get_ticklabels(), names, strict=True):
        text.set_fontfamily(_families(name) or _PLAIN)
        text.set_parse_math(False)


def _label(name: str, at: int) -> str:
    if _families(name) is None:
        return str(at + 1)
    return name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…"


_PLAIN = ["DejaVu Sans"]  # comes with matplotlib


@lru_cache(maxsize=4096)
def _families(text: str) -> list[str] | None:
    """Font families that have all letters of a text together; None where this machine has none that has the rest."""
    from matplotlib import font_manager

    wanted = frozenset(map(ord, text)) - _letters(font_manager.findfont(_PLAIN[0]))
    if not wanted:
        return _PLAIN
    for family, path in _installed():
        if wanted <= _letters(path):
            return [*_PLAIN, family]
    return None


@lru_cache(maxsize=1)
def _installed() -> list[tuple[str, str]]:
    """Upright fonts of the machine, sans and Chinese ones first: they look best beside the others."""
    from matplotlib import font_manager

    upright = [font for font in font_manager.fontManager.ttflist if font.style == "normal"]
    liked = ("CJK SC", "Sans SC", "WenQuanYi", "YaHei", "PingFang", "Hiragino", "CJK", "Sans")

    def place(font: Any) -> tuple[int, float, str]:
        rank = next((at for at, word in enumerate(liked) if word in font.name), len(liked))
        return rank, abs(_weight(font.weight) - 400), font.fname

    return [(font.name, font.fname) for font in sorted(upright, key=place)]


def _weight(named: int | str) -> float:
    from matplotlib import font_manager

    return float(font_manager.weight_dict.get(named, 400)) if isinstance(named, str) else float(named)


@lru_cache(maxsize=None)
def _letters(path: str) -> frozenset[int]:
    """Code points that a font has; none of a file that cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _wilson(frequency: Any, rows: Any) -> tuple[Any, Any]:
    """Wilson's score interval at 95 %."""
    z = 1.96
    middle = (frequency + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * np.sqrt(frequency * (1 - frequency) / rows + z * z / (4 * rows * rows))
    return middle - half, middle + half


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)

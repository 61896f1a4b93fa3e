"""Pictures of any names: what a font lacks becomes a number, and nothing global is touched."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import pytest

from ray_profile.train import charts


def scores(*names: str) -> dict[str, dict[str, float]]:
    return {name: {"f1": 0.5, "support": 3} for name in names}


@pytest.mark.parametrize("name", ["très bon", "$\\bad$", "$5 to $9", "书籍", "🎸", "", "a" * 200])
def test_any_name_is_drawn_without_a_warning(name: str, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        charts.tag_scores(scores(name, "tea"), tmp_path / "bars.png")
        charts.confusion([[1, 0], [2, 3]], [name, "tea"], tmp_path / "square.png")
    assert (tmp_path / "bars.png").read_bytes()[:4] == b"\x89PNG"
    assert dict(matplotlib.rcParams) == before


def test_a_name_that_no_font_has_is_its_number_in_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    monkeypatch.setattr(charts, "_installed", lambda: ())
    charts._families.cache_clear()
    axes = Figure().add_subplot()
    charts._name(axes.yaxis, ["café", "书籍"], [4, 7])
    charts._families.cache_clear()
    assert [text.get_text() for text in axes.get_yticklabels()] == ["café", "tag 7"]


def test_no_rows_no_points_and_a_loss_that_diverged(tmp_path: Path) -> None:
    charts.tag_scores({}, tmp_path / "none.png")
    charts.reliability([], "nothing", tmp_path / "bins.png")
    charts.curves([{"step": 1.0, "loss": float("nan")}], ["loss"], "loss", tmp_path / "lost.png")
    assert len(list(tmp_path.iterdir())) == 3


def test_the_boxes_that_matplotlib_draws_for_all_letters_are_no_font() -> None:
    assert not [family for family, _ in charts._installed() if "resort" in family.lower()]
    assert charts._families("\U000f0000") is None  # a private letter that nobody has

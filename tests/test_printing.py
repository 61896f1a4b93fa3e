from __future__ import annotations

import io
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from ray_profile import printing
from ray_profile.pipelines.build import Summary
from ray_profile.pipelines.lookup import profile_of
from ray_profile.pipelines.report import Report
from ray_profile.profile.fuse import PROFILE_DTYPES
from ray_profile.progress import plain_progress
from ray_profile.sources.simulate import Shop
from ray_profile.store.plan import RejectedFile

DAY = datetime(2026, 1, 1, tzinfo=UTC)


def empty() -> dict[str, Any]:
    """A profile that says nothing: every list empty, every value null."""
    lists = {name: [] for name, dtype in PROFILE_DTYPES.items() if isinstance(dtype, pl.List)}
    counts = {"rows": 0, "sessions": 0, "frequency": 0.0, "monetary": 0.0}
    return {**dict.fromkeys(PROFILE_DTYPES), **lists, **counts, "user_id": "u", "as_of": DAY}


def acts(kind: str, **more: Any) -> dict[str, Any]:
    spanned = {"rows": 2, "first_ts": DAY, "last_ts": DAY, "recency_days": 1.2, "weekdays": [0, 0, 0, 2, 0, 0, 0]}
    return {**empty(), **spanned, "kinds": [{"kind": kind, "n": 2, "quantity": 2.0, "last": DAY}], **more}


def tag(name: str, **more: Any) -> dict[str, Any]:
    values = {"tag": name, "share": 0.35, "score": 1.0, "support": 66, "of": 215, "items": 5, "last": DAY}
    return {**values, "stance": "liked", "source": "catalogue", "weak": False, "evidence": [], **more}


def proof(snippet: str | None, name: str = "0123456789abcdef" * 2) -> dict[str, Any]:
    return {"id": name, "kind": "favourite", "weight": 1.0, "ts": DAY, "item_id": "B01", "snippet": snippet}


def shown(found: dict[str, Any], width: int = 100, user: str = "u") -> str:
    out = io.StringIO()
    printing.profile(found, user, Console(file=out, width=width, highlight=False, emoji=False))
    return out.getvalue()


def test_an_empty_profile_says_so_in_one_sentence() -> None:
    text = " ".join(shown(empty()).split())
    assert text.startswith("u before 2026-01-01 00:00 UTC not enough data for rows, feels, likes, words")


def test_only_purchases() -> None:
    bought = {"frequency": 1.0, "monetary": 12.5, "returns": {"n": 0, "value": 0.0}, "basket_size": 2.0}
    text = shown(acts("purchase", **bought))
    assert "2 purchases" in text
    assert re.search(r"buys +1 order, 12\.50 net, 2\.0 pieces an order\n", text)
    assert "to 2026-01-01, 1 day before" in text
    missing = text[text.index("not enough data for") :]
    assert "feels" in missing
    assert "buys" not in missing


def test_only_reviews() -> None:
    felt = {
        "negative": 0.0,
        "neutral": 0.5,
        "positive": 0.5,
        "n": 2,
        "trend": -0.001,
        "source": "probe",
        "evidence": [],
    }
    text = shown(acts("review", sentiment=felt, monetary=None, frequency=None))
    assert "50% positive, 50% neutral, 0% negative in 2 reviews (by their words)" in text
    assert "trend +0.00" in text
    assert "rating" not in text
    assert "buys" in text[text.index("not enough data for") :]


def test_what_the_trained_model_says_is_told_with_how_sure_it_is() -> None:
    felt = {"negative": 0.1, "neutral": 0.2, "positive": 0.7, "n": 3, "trend": None, "source": "model", "evidence": []}
    tags = [tag("coffee", source="model", score=0.834), tag("tea", source="zero-shot", score=0.51), tag("milk")]
    for width in (80, 120):
        text = shown(acts("review", sentiment=felt, tags=[*tags, tag("sure", source="model", score=0.999)]), width)
        assert "in 3 reviews (by their words, as the trained model reads them)" in " ".join(text.split())
        ends = {line.split()[0]: line.split()[-2:] for line in text.splitlines() if "66 of 215" in line}
        assert (ends["coffee"], ends["sure"]) == (["model", "83%"], ["model", "100%"])
        assert ends["tea"][-1] == "zero-shot"  # its score is a cosine
        assert ends["milk"][-1] == "catalogue"


def test_markup_and_emoji_codes_in_user_text_print_as_they_are() -> None:
    nasty = "[red]:cat: [/] [bold"
    found = acts("review", tags=[tag(nasty, evidence=[proof(nasty)])], keywords=[{"term": nasty, "n": 1}])
    found |= {"places": [{"place": nasty, "share": 1.0}], "entities": [{"entity": f"brand:{nasty}", "n": 3}]}
    text = shown(found, 120, user=nasty)
    assert text.count(nasty) == 6
    assert f"{nasty} (brand) x 3" in text


def test_text_cannot_drive_the_terminal() -> None:
    text = shown(acts("review", tags=[tag("a", evidence=[proof("x\x1b[2J\x07\r\n\u202ey")])]), user="u\x1b]0;t")
    assert not set(text) & {"\x1b", "\x07", "\r", "\u202e"}
    assert "“x [2J y”" in text


def test_chinese_columns_are_aligned_by_the_width_on_the_screen() -> None:
    tags = [tag("咖啡"), tag("boardgames"), tag("跑鞋服饰用品")]
    lines = [line for line in shown(acts("view", tags=tags), 80).splitlines() if "66 of 215" in line]
    assert len(lines) == 3
    assert len({cell_len(line[: line.index("66 of 215")]) for line in lines}) == 1


def test_dislikes_stand_under_a_heading_of_their_own() -> None:
    tags = [tag("coffee"), tag("tea", stance="disliked"), tag("milk", stance="mixed"), tag("rain", stance=None)]
    words = shown(acts("view", tags=tags)).split()
    likes, dislikes = words.index("likes"), words.index("dislikes")
    assert all(likes < words.index(name) < dislikes for name in ("coffee", "milk", "rain"))
    assert words.index("tea") > dislikes
    assert "dislikes" not in shown(acts("view", tags=tags[:1])).split()
    assert "likes" not in shown(acts("view", tags=tags[1:2])).replace(",", "").split()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_evidence_takes_one_line_and_keeps_its_id(width: int) -> None:
    long = "买了两个月没什么可挑的,做工很好 " * 10
    found = acts("review", tags=[tag("咖啡", evidence=[proof(long), proof(None, "e1")])])
    lines = [line for line in shown(found, width).splitlines() if "favourite" in line]
    assert len(lines) == 2
    assert all(cell_len(line) <= width for line in lines)
    assert "0123456789abcdef0123456789abcdef" in lines[0] if width >= 100 else "01234567…" in lines[0]
    assert lines[0].count("”") == 1
    assert lines[1].split() == ["favourite", "B01", "e1"]


def test_a_long_tag_folds_instead_of_pushing_the_figures_out() -> None:
    name = "Home and kitchen > Small appliances > Coffee makers"
    text = shown(acts("view", tags=[tag(name, weak=True, items=1)]), 80)
    assert "66 of 215" in text
    assert "1 weak" in text
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    assert "".join(line[:17].strip() for line in text.splitlines() if line[:1] in "Hak>SmCo").startswith("Home")


def test_lines_break_between_terms() -> None:
    words = [{"term": f"burr grinder {i}", "n": i} for i in range(12)]
    text = shown(acts("view", keywords=words), 80)
    ends = [line.rstrip() for line in text.splitlines() if "burr" in line]
    assert len(ends) > 1
    assert all(line.endswith(",") for line in ends[:-1])


@given(st.text(max_size=40), st.integers(80, 140))
def test_no_text_breaks_the_layout(text: str, width: int) -> None:
    found = acts("view", tags=[tag(text, evidence=[proof(text)])], keywords=[{"term": text, "n": 1}])
    out = shown(found, width)
    assert all(cell_len(line) <= width for line in out.split("\n"))
    assert "\x1b" not in out


@pytest.mark.parametrize("width", [80, 120])
def test_profiles_of_a_built_shop_fit_the_screen(shop: Shop, built: Path, width: int) -> None:
    config = tiny.config_of(shop, built)
    for user in pl.read_parquet(shop.truth)["user_id"].head(8):
        text = shown(profile_of(config, user), width, user)
        assert all(cell_len(line) <= width for line in text.splitlines())
        assert "None" not in text
        assert "nan" not in re.findall(r"\w+", text)


def test_a_summary_accounts_for_every_row_and_names_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("s", "f", 1_000, 990, 4, {"time_missing": 6})
    bad = RejectedFile("s", "/tmp/[red].csv", 1, "tag", reason="not CSV", transient=False)
    done = Summary(waves=1, users=3, profiles_new=2, profiles_changed=1, profiles_version=1, keyed=False)
    done.reports, done.rejected, done.stages = [report], [bad], {"fold": 1.0}
    done.full = {"terms": 12_345}
    printing.summary(done)
    text = capsys.readouterr().out
    for said in (
        "1,000",
        "990",
        "time_missing",
        "the row has no time",
        "[red].csv: not CSV",
        "[privacy]",
        "2 new, 1 changed",
        "full: terms",
        "12,345",
    ):
        assert said in text
    assert "names a user" not in text
    done.reports = [report, Report("logs", "a", 5, 0, 5), Report("logs", "b", 2, 0, 2)]
    printing.summary(done)
    assert "[sources.logs] none of the 7 rows names a user" in capsys.readouterr().out
    printing.summary(Summary(files_folded_before=7, keyed=False))
    assert capsys.readouterr().out.startswith("nothing new: 7 files are folded in already")


def test_status_tells_yes_from_one(capsys: pytest.CaptureFixture[str]) -> None:
    printing.status({"pseudonyms": True, "waves": 1, "users": 12_000, "profiles_version": None})
    assert capsys.readouterr().out.split() == [
        "pseudonyms",
        "yes",
        "waves",
        "1",
        "users",
        "12,000",
        *["profiles", "version", "none"],
    ]


def told(steps: list[tuple[float, float, float]]) -> list[str]:
    """What plain progress says to (time, done, total) of one stage."""
    lines: list[str] = []
    times = iter([time for time, _, _ in steps])
    tell = plain_progress(lambda: next(times), lines.append)
    for _, done, total in steps:
        tell("fold", done, total)
    return lines


def test_plain_progress_is_no_flood() -> None:
    steps = [(at / 10, at, 1_000.0) for at in range(1_001)] + [(100.0 + at, 1_000.0, 1_000.0) for at in range(20)]
    lines = told(steps)
    assert lines[0] == "fold: 0%\n"
    assert lines[-1] == "fold: 100%\n"
    assert len(lines) == 21
    assert lines[10] == "fold: 50%, about 50 s left\n"


def test_plain_progress_says_when_the_next_wave_begins_and_bears_an_empty_one() -> None:
    assert told([(0, 5, 10), (1, 10, 10), (2, 10, 10), (3, 0, 10), (4, 10, 10)]) == [
        "fold: 50%\n", "fold: 100%\n", "fold: 0%\n", "fold: 100%\n",
    ]  # fmt: skip
    assert told([(0, 0, 0), (1, 0, 0)]) == ["fold: 100%\n"]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-1, 20), st.floats(0, 10)), max_size=30))
def test_plain_progress_never_says_nonsense(steps: list[tuple[float, float, float]]) -> None:
    for line in told(sorted(steps, key=lambda step: step[0])):
        assert re.fullmatch(r"fold: \d{1,3}%(, about [\d,]+ s left)?\n", line)

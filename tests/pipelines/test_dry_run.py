from __future__ import annotations

import io
from pathlib import Path

import pytest
import tiny
from rich.console import Console

from ray_profile.config import Config, load
from ray_profile.errors import ConfigError
from ray_profile.pipelines.build import build
from ray_profile.pipelines.dry_run import DryRun, dry_run, print_report
from ray_profile.sources.simulate import Shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    return tiny.write_shop(folder / "shop", tiny.write_encoder(folder / "encoder"))


def everything_under(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, with size and time of the last change."""
    paths = [path for folder in folders for path in [folder, *folder.rglob("*")]]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def told(found: DryRun) -> str:
    out = io.StringIO()
    print_report(Console(file=out, width=120), found)
    return out.getvalue()


def of(config: Config) -> DryRun:
    return dry_run(config, tiny.CLOCK)


def test_a_dry_run_writes_nothing_and_makes_no_root(shop: Shop, tmp_path: Path) -> None:
    before = everything_under(shop.folder, tmp_path)
    found = of(tiny.config_of(shop, tmp_path / "deep" / "root"))
    assert everything_under(shop.folder, tmp_path) == before
    assert not found.root_exists
    assert found.problems == ()


def test_it_describes_every_source_and_estimates_every_step(shop: Shop, tmp_path: Path) -> None:
    found = of(tiny.config_of(shop, tmp_path / "root"))
    assert [each.name for each in found.sources] == ["reviews", "events", "items"]
    assert {name: len(files) for name, files in found.new.items()} == {"reviews": 3, "events": 3, "items": 1}
    measured = found.estimate
    assert measured.rows == sum(each.rows for each in found.sources)
    assert measured.texts > 0
    assert measured.titles > 0
    assert measured.tokens > measured.texts
    for rate in (measured.tokens_per_second, measured.read_rows_per_second, measured.fold_rows_per_second):
        assert rate > 0
    assert measured.encode_seconds == pytest.approx(measured.tokens / measured.tokens_per_second, rel=0.01)
    assert measured.seconds == measured.read_seconds + measured.encode_seconds + measured.fold_seconds
    assert measured.refused == ""
    assert measured.assumptions


def test_on_a_root_it_says_what_is_new_and_changes_nothing(shop: Shop, tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = tiny.config_of(
        shop, root, f'sources.reviews.paths=["{shop.reviews[0]}"]', f'sources.events.paths=["{shop.events[0]}"]'
    )
    build(first, local=True, clock=tiny.CLOCK)
    before = everything_under(root, shop.folder)
    found = of(tiny.config_of(shop, root))
    assert everything_under(root, shop.folder) == before
    assert found.root_exists
    assert {name: len(files) for name, files in found.new.items()} == {"reviews": 2, "events": 2, "items": 0}
    assert found.files_folded == 3
    assert found.estimate.rows < sum(each.rows for each in found.sources)
    assert "3 files folded in already" in told(found)
    assert shop.reviews[2].name in told(found)
    assert shop.reviews[0].name not in told(found)
    done = of(first)
    assert done.estimate.rows == 0
    assert done.estimate.seconds == 0


def test_a_root_made_otherwise_is_a_problem(shop: Shop, tmp_path: Path) -> None:
    root = tmp_path / "root"
    build(tiny.config_of(shop, root), local=True, clock=tiny.CLOCK)
    found = of(tiny.config_of(shop, root, "state.buckets=5"))
    assert len(found.problems) == 1
    assert "buckets" in found.problems[0]
    assert "A build would stop" in told(found)


def test_what_would_stop_a_build_is_told_and_the_rest_described(shop: Shop, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("u,i,t\n" + "a,x,never\n" * 3 + "b,y,2024-01-01\n")
    text = shop.config.read_text() + (
        f'\n[sources.bad]\nformat = "columns"\nkind = "view"\npaths = ["{bad}"]\n'
        '[sources.bad.columns]\nuser_id = "u"\nitem_id = "i"\nts = "t"\n'
        f'\n[sources.lacking]\nformat = "columns"\nkind = "view"\npaths = ["{bad}"]\n'
        '[sources.lacking.columns]\nuser_id = "customer"\nitem_id = "i"\nts = "t"\n'
        f'\n[sources.absent]\nformat = "taobao"\npaths = ["{tmp_path}/none*.csv"]\n'
    )
    path = tmp_path / "config.toml"
    path.write_text(text)
    found = of(load(path, [f"root={tmp_path / 'root'}", "encoder.dtype=float32"]))
    assert [each.name for each in found.sources] == ["reviews", "events", "items", "bad"]
    problems = "\n".join(found.problems)
    assert "75.00% of the sample's rows are bad" in problems
    assert "no column 'customer'" in problems
    assert "[sources.absent] paths match no file" in problems
    assert "time_unreadable" in told(found)


def test_an_encoder_that_cannot_be_loaded_is_a_problem(shop: Shop, tmp_path: Path) -> None:
    found = of(tiny.config_of(shop, tmp_path / "root", f"encoder.model={tmp_path / 'no-model'}"))
    assert any("encoder.model" in problem for problem in found.problems)
    assert found.estimate.encode_seconds == 0
    assert found.estimate.fold_seconds > 0


def test_a_key_that_cannot_be_read_is_an_error(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key_file"):
        of(tiny.config_of(shop, tmp_path / "root", "privacy.key_file=nowhere"))


def test_events_without_texts_start_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("u,i,t\na,x,2024-01-01\n")
    source = {
        "format": "columns",
        "kind": "view",
        "paths": (f"{tmp_path}/log.csv",),
        "columns": {"user_id": "u", "item_id": "i", "ts": "t"},
    }
    config = Config.model_validate(
        {"root": str(tmp_path / "root"), "sources": {"log": source}, "encoder": {"model": "/nowhere"}}
    )
    found = of(config)
    assert found.problems == ()
    assert (found.estimate.rows, found.estimate.tokens) == (1, 0)


def test_the_report_reads_well(shop: Shop, tmp_path: Path) -> None:
    text = told(of(tiny.config_of(shop, tmp_path / "root")))
    for words in (
        "reviews (amazon-2023)",
        "3 files, 3 of them new",
        "languages:",
        "encode",
        "tokens",
        "Nothing was written",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.slow
def test_chinese_is_refused_by_the_english_encoder(shared: Path, tmp_path: Path) -> None:
    rows = ["u,i,t,r,x"] + [f"u{n},i{n},2024-01-01,5,{'质量很好非常满意物流很快包装精美' * 3}" for n in range(30)]
    (tmp_path / "reviews.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    columns = {"user_id": "u", "item_id": "i", "ts": "t", "rating": "r", "text": "x"}
    source = {"format": "columns", "kind": "review", "paths": (f"{tmp_path}/reviews.csv",), "columns": columns}
    settings = {"root": str(tmp_path / "root"), "sources": {"reviews": source}}
    english = of(Config.model_validate(settings))
    assert english.estimate.unknown_share > 1 / 3
    assert english.estimate.refused in english.problems
    bilingual = {"model": str(shared / "models" / "multilingual-e5-small-zh-en"), "prefix": "query: "}
    assert of(Config.model_validate({**settings, "encoder": bilingual})).problems == ()

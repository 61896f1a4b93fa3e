"""A build accounts for every row, day by day equals at once, and bad input or a second run changes nothing."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
import tiny
from equal import assert_equal_frames, assert_equal_roots, profiles_of, states_of

from ray_profile.config import Config, Source, load, parse
from ray_profile.errors import (
    ChangedFileError,
    ConfigError,
    EncoderError,
    FencedError,
    QuarantineLimitError,
    RootError,
    SourceError,
    UnknownUserError,
)
from ray_profile.pipelines.build import Summary, build
from ray_profile.pipelines.compact import compact
from ray_profile.pipelines.lookup import profile_of, status_of
from ray_profile.pipelines.run import listed
from ray_profile.sources.redact import pseudonyms
from ray_profile.sources.simulate import Shop
from ray_profile.store.root import Root
from ray_profile.store.tables import Table, read_files


def run(config: Config, **options: object) -> Summary:
    return build(config, local=True, clock=tiny.CLOCK, **options)  # type: ignore[arg-type]


def of_months(shop: Shop, root: Path, months: int) -> Config:
    """The shop's configuration, seeing only the first months."""
    reviews = json.dumps([str(path) for path in shop.reviews[:months]])
    events = json.dumps([str(path) for path in shop.events[:months]])
    return tiny.config_of(shop, root, f"sources.reviews.paths={reviews}", f"sources.events.paths={events}")


def copied(shop: Shop, to: Path) -> Shop:
    """The shop's files in a folder of their own, free to be spoilt."""
    shutil.copytree(shop.folder, to)
    text = shop.config.read_text().replace(str(shop.folder), str(to))
    (to / "ray_profile.toml").write_text(text)

    def moved(path: Path) -> Path:
        return to / path.name

    return Shop(
        **{
            **shop.__dict__,
            "folder": to,
            **{name: moved(getattr(shop, name)) for name in ("config", "taxonomy", "key_file", "truth", "items")},
            "reviews": tuple(map(moved, shop.reviews)),
            "events": tuple(map(moved, shop.events)),
        }
    )


def test_every_row_is_accounted_for(shop: Shop, tmp_path: Path) -> None:
    done = run(tiny.config_of(shop, tmp_path / "root"))
    report = done.report
    assert report.rows_read == shop.review_rows + shop.event_rows
    assert report.rows_anonymous == shop.anonymous
    assert report.rows_quarantined == shop.broken + shop.duplicates
    assert report.rows_read == report.rows_folded + report.rows_anonymous + report.rows_quarantined
    states = states_of(tmp_path / "root", tiny.WIDTH)
    assert states["rows"].sum() == report.rows_folded
    quarantined = pl.read_parquet(tmp_path / "root" / "quarantine" / "*" / "*.parquet")
    assert quarantined.height == report.rows_quarantined
    assert quarantined.filter(pl.col("file").is_null() | pl.col("reason").is_null()).is_empty()


def test_no_raw_user_id_and_no_planted_contact_is_stored(shop: Shop, built: Path) -> None:
    truth = pl.read_parquet(shop.truth)
    stored = profiles_of(built)
    key = load(shop.config).privacy.key()
    assert set(stored["user_id"]) <= set(pseudonyms(truth["user_id"], key))
    bodies = b"".join(
        path.read_bytes() if path.suffix != ".parquet" else str(pl.read_parquet(path).to_dicts()).encode()
        for path in built.rglob("*")
        if path.is_file()
    )
    assert all(user.encode() not in bodies for user in truth["user_id"])
    assert b"@example" not in bodies


def test_of_a_root_within_a_source_nothing_is_a_file_of_the_source(shop: Shop, tmp_path: Path) -> None:
    mine = copied(shop, tmp_path / "shop")
    root = mine.folder / "root"
    run(tiny.config_of(mine, root))
    assert {"states", "profiles", "items", "waves", "quarantine", "statistics"} <= {
        path.name for path in root.iterdir()
    }
    (root / "items" / "mine.csv").touch()
    around = Source(format="columns", paths=(f"{mine.folder}/**/*",))
    for address in (str(root), f"{mine.folder}/../shop/root/"):
        found = listed(Config(root=address, sources={"s": around}), "s")
        names = [str(Path(file.path).relative_to(root)) for file in found if Path(file.path).is_relative_to(root)]
        assert names == ["items/mine.csv"]
        assert {str(path) for path in (*mine.reviews, *mine.events)} <= {file.path for file in found}


def test_a_second_build_does_nothing_and_starts_neither_ray_nor_torch(shop: Shop, built: Path) -> None:
    script = (
        "import sys, json\n"
        "from ray_profile.config import load\n"
        "from ray_profile.pipelines.build import build\n"
        f"done = build(load({str(shop.config)!r}, ['root={built}', 'encoder.dtype=float32']))\n"
        "heavy = [m for m in ('torch', 'ray', 'sklearn', 'transformers') if m in sys.modules]\n"
        "print(json.dumps([done.to_json(), heavy, done.files_folded_before]))\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    said, heavy, before = json.loads(out.stdout.splitlines()[-1])
    assert said["rows_read"] == said["waves"] == said["profiles_written"] == 0
    assert said["users"] == profiles_of(built).height
    assert heavy == []
    assert before == len(shop.reviews) + len(shop.events) + 1
    assert said["seconds"] < 5


def test_month_by_month_equals_all_at_once(shop: Shop, built: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for months in range(1, len(shop.reviews) + 1):
        done = run(of_months(shop, root, months))
        assert done.waves == 1
    assert_equal_frames(states_of(root, tiny.WIDTH), states_of(built, tiny.WIDTH))
    again = run(of_months(shop, root, len(shop.reviews)), refresh=True)
    assert again.profiles_written == again.users
    assert_equal_roots(root, built, tiny.WIDTH, ignore=("statistics",))


def test_many_small_waves_equal_one(shop: Shop, built: Path, tmp_path: Path) -> None:
    done = run(tiny.config_of(shop, tmp_path / "root", "build.wave_gb=1e-9"))
    assert done.waves == len(shop.reviews) + len(shop.events) + 1
    assert_equal_roots(tmp_path / "root", built, tiny.WIDTH)


def test_untouched_users_keep_their_profile_to_the_bit(shop: Shop, tmp_path: Path) -> None:
    root = tmp_path / "root"
    run(of_months(shop, root, 2))
    before = profiles_of(root)
    run(of_months(shop, root, 3))
    after = profiles_of(root)
    touched = states_of(root, tiny.WIDTH).filter(pl.col("period") == pl.col("period").max())["user_id"].unique()
    kept = before.filter(~pl.col("user_id").is_in(touched.to_list()))
    assert after.join(kept, on="user_id", how="semi").equals(kept)
    assert before.height - kept.height > 0


def test_a_profile_as_of_a_day_is_what_was_built_from_the_data_before_it(shop: Shop, tmp_path: Path) -> None:
    root, early = tmp_path / "root", tmp_path / "early"
    whole, part = of_months(shop, root, 3), of_months(shop, early, 2)
    run(whole)
    run(part)
    # Months in the shop's zone are not months in UTC: what the early root was told of the last one is no part of it.
    moment = states_of(root, tiny.WIDTH)["period"].max()
    truth = pl.read_parquet(shop.truth)["user_id"].sort()
    compared = 0
    for user in truth[:12]:
        try:
            then = profile_of(whole, user, moment.isoformat())
        except UnknownUserError:
            continue
        built_then = profile_of(part, user, moment.isoformat())
        assert then.keys() == built_then.keys()
        for drop in ("embedding", "text_vector"):
            then.pop(drop), built_then.pop(drop)
        assert then["last_ts"] < datetime.combine(moment, datetime.min.time(), tzinfo=then["last_ts"].tzinfo)
        assert_equal_frames(pl.DataFrame([then], strict=False), pl.DataFrame([built_then], strict=False))
        compared += 1
    assert compared >= 5


def test_as_of_another_moment_names_the_nearest_two(shop: Shop, built: Path) -> None:
    user = pl.read_parquet(shop.truth)["user_id"][0]
    with pytest.raises(ConfigError, match=r"2025-11-05.*not the start of a month.*2025-11-01 and 2025-12-01"):
        profile_of(tiny.config_of(shop, built), user, "2025-11-05")


def test_an_unknown_user_and_a_root_that_is_none_are_named(shop: Shop, built: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownUserError, match="no profile of user 'nobody'"):
        profile_of(tiny.config_of(shop, built), "nobody")
    with pytest.raises(RootError, match=r"no root at .*build"):
        profile_of(tiny.config_of(shop, tmp_path / "nowhere"), "nobody")


def test_too_many_bad_rows_fail_the_wave_before_anything_is_committed(shop: Shop, tmp_path: Path) -> None:
    mine = copied(shop, tmp_path / "shop")
    root = tmp_path / "root"
    run(of_months(mine, root, 2))
    before, states = profiles_of(root), states_of(root, tiny.WIDTH)
    spoilt = mine.events[2]
    lines = spoilt.read_text().splitlines()
    half = [line if at % 2 else line.replace("2025-", "1975-", 1) for at, line in enumerate(lines)]
    spoilt.write_text("\n".join(half) + "\n")
    with pytest.raises(QuarantineLimitError) as caught:
        run(of_months(mine, root, 3))
    message = str(caught.value)
    assert spoilt.name in message
    assert "time_impossible" in message
    assert "max_quarantine" in message
    assert caught.value.exit_code == 1
    assert profiles_of(root).equals(before)
    assert states_of(root, tiny.WIDTH).equals(states)
    lenient = of_months(mine, root, 3).model_copy(deep=True)
    sources = {name: source.model_copy(update={"max_quarantine": 1.0}) for name, source in lenient.sources.items()}
    done = run(lenient.model_copy(update={"sources": sources}))
    assert done.report.quarantined["time_impossible"] > 100


def test_a_file_that_cannot_be_read_whole_is_rejected_whole_and_tried_again_when_it_changes(
    shop: Shop, built: Path, tmp_path: Path
) -> None:
    mine = copied(shop, tmp_path / "shop")
    root = tmp_path / "root"
    config = tiny.config_of(mine, root, "sources.reviews.max_quarantine=0.5")
    whole = mine.reviews[1].read_bytes()
    mine.reviews[1].write_bytes(whole[: len(whole) // 2])
    done = run(config)
    assert [file.path for file in done.rejected] == [str(mine.reviews[1])]
    assert "gzip" in done.rejected[0].reason
    assert done.report.rows_read == shop.review_rows + shop.event_rows - _lines(whole)
    again = run(config)
    assert again.waves == 0
    assert [file.path for file in again.rejected_before] == [str(mine.reviews[1])]
    mine.reviews[1].write_bytes(whole)
    assert run(config).waves == 1
    run(config, refresh=True)
    assert_equal_frames(
        states_of(root, tiny.WIDTH).drop("tag_evidence"), states_of(built, tiny.WIDTH).drop("tag_evidence")
    )


def _lines(packed: bytes) -> int:
    return len(gzip.decompress(packed).splitlines())


def test_a_file_that_breaks_after_some_of_its_rows_were_folded_counts_for_nothing(shop: Shop, tmp_path: Path) -> None:
    mine = copied(shop, tmp_path / "shop")
    frame = pl.read_csv(mine.events[0], infer_schema=False)
    path = mine.folder / "events-extra.parquet"
    frame.write_parquet(path, row_group_size=200, compression="uncompressed")
    body = bytearray(path.read_bytes())
    body[len(body) // 2 : len(body) // 2 + 400] = b"\xff" * 400  # a page in the middle: the footer is whole
    path.write_bytes(bytes(body))
    paths = json.dumps([str(path)])
    config = tiny.config_of(mine, tmp_path / "root", f"sources.events.paths={paths}", "sources.events.max_quarantine=1")
    done = run(config)
    if not done.rejected:
        pytest.skip("the damage hit no value that Parquet checks")
    assert done.report.rows_read == shop.review_rows
    assert states_of(tmp_path / "root", tiny.WIDTH)["rows"].sum() == done.report.rows_folded


def test_a_folded_file_that_changed_is_an_error_and_one_that_vanished_is_not(shop: Shop, tmp_path: Path) -> None:
    mine = copied(shop, tmp_path / "shop")
    root = tmp_path / "root"
    config = tiny.config_of(mine, root)
    run(config)
    before = profiles_of(root)
    with mine.events[0].open("a") as file:
        file.write("e999999,2025-10-02 09:00:42,A1,pv,B1,,,1.0,,phone,Berlin\n")
    with pytest.raises(ChangedFileError, match=f"{mine.events[0].name} has changed"):
        run(config)
    mine.events[0].unlink()
    assert run(config).waves == 0
    assert profiles_of(root).equals(before)


def test_the_run_that_commits_second_fails_and_changes_nothing(shop: Shop, built: Path, tmp_path: Path) -> None:
    config = tiny.config_of(shop, tmp_path / "root")
    overtaken: list[Summary] = []

    def at(step: str) -> None:
        if step == "commit.before" and not overtaken:
            overtaken.append(run(config))

    with pytest.raises(FencedError, match="another run"):
        run(config, at=at)
    assert overtaken[0].waves == 1
    assert_equal_roots(tmp_path / "root", built, tiny.WIDTH)
    assert run(config).waves == 0


def test_of_two_first_builds_with_other_facts_the_later_commits_nothing(shop: Shop, tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = of_months(shop, root, 1)
    other = first.model_copy(update={"state": first.state.model_copy(update={"buckets": 3})})
    overtaken: list[Summary] = []

    def at(step: str) -> None:
        if step == "commit.before" and not overtaken:
            overtaken.append(run(other))

    with pytest.raises(RootError, match=r"buckets = 3, but this run has 4"):
        run(first, at=at)
    found = status_of(other)
    assert (found["buckets"], found["waves"]) == (3, 1)
    assert found["users"] == overtaken[0].users > 0
    assert {file.bucket for file in Table(Root.existing(str(root)), "states").open().files()} <= {0, 1, 2}  # type: ignore[union-attr]
    assert run(other).waves == 0


def test_compaction_keeps_every_profile_and_the_next_build_goes_on(
    shop: Shop, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    run(of_months(shop, root, 1))
    run(of_months(shop, root, 2))
    before, states = profiles_of(root), states_of(root, tiny.WIDTH)
    done = compact(of_months(shop, root, 2), local=True, max_files=1, clock=tiny.CLOCK)
    assert done.files_before > done.files_after > 0
    found = status_of(of_months(shop, root, 2))
    assert (found["most_files_in_a_bucket"], found["waves_not_fused"]) == (1, 0)
    with monkeypatch.context() as patch:
        patch.setattr("ray_profile.pipelines.build.engine_of", None)  # nothing is due: no engine is asked for
        assert run(of_months(shop, root, 2)).profiles_written == 0
    assert profiles_of(root).equals(before)
    assert_equal_frames(states_of(root, tiny.WIDTH), states)
    run(of_months(shop, root, 3))
    run(of_months(shop, root, 3), refresh=True)
    assert_equal_roots(root, built, tiny.WIDTH, ignore=("statistics",))


def test_what_a_root_was_made_with_cannot_change(shop: Shop, built: Path) -> None:
    for override, said in (
        ("state.buckets=7", "buckets"),
        ("state.period=week", "period"),
        ("state.half_life_days=1", "half_life_days"),
        ("encoder.max_length=64", "encoder"),
        ("taxonomy.threshold=0.9", "taxonomy"),
    ):
        with pytest.raises(RootError, match=said):
            run(tiny.config_of(shop, built, override))
        with pytest.raises(RootError, match=said):
            compact(tiny.config_of(shop, built, override), local=True, clock=tiny.CLOCK)
    user = str(pl.read_parquet(shop.truth)["user_id"][0])
    with pytest.raises(RootError, match="encoder has changed"):
        profile_of(tiny.config_of(shop, built, "encoder.max_length=64"), user, "2025-11-01")


def test_a_source_without_files_and_an_unknown_format_are_named(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"sources.events.*match no file.*nothing-\*"):
        run(tiny.config_of(shop, tmp_path / "root", 'sources.events.paths=["/nowhere/nothing-*"]'))
    with pytest.raises(ConfigError, match=r"amazon-2032.*did you mean 'amazon-2023'"):
        run(tiny.config_of(shop, tmp_path / "other", "sources.reviews.format=amazon-2032"))


def test_an_encoder_that_cannot_read_the_corpus_is_refused(tmp_path: Path) -> None:
    rows = [
        {"user_id": f"u{at}", "parent_asin": "i", "rating": 5, "timestamp": 1_700_000_000_000 + at, "text": text}
        for at, text in enumerate(["颱風蕈褶孢鱗繖絨蓋牛肝菌", "鸚鵡螺鑲嵌鑽戒", "齲齒矯正鑷鉗"] * 5)
    ]
    path = tmp_path / "reviews.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    text = f'root = "{tmp_path}/root"\n[sources.reviews]\nformat = "amazon-2023"\npaths = ["{path}"]\n'
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(EncoderError, match=r"cannot read this text.*multilingual-e5-small"):
        run(load(tmp_path / "c.toml"))
    assert profiles_missing(tmp_path / "root")


def profiles_missing(root: Path) -> bool:
    return not (root / "profiles").exists()


def test_a_mistyped_path_leaves_no_root_behind(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="match no file"):
        run(tiny.config_of(shop, tmp_path / "root", 'sources.events.paths=["/nowhere/nothing-*"]'))
    assert not (tmp_path / "root").exists()


def test_one_file_of_two_sources_counts_for_both(shop: Shop, tmp_path: Path) -> None:
    """Orders that are read as purchases and, by another source, as the catalogue."""
    path = tmp_path / "orders.csv"
    path.write_text(
        "user,item,title,ts\n" + "".join(f"u{n},i{n % 3},Guitar {n % 3},2025-10-0{n % 9 + 1}\n" for n in range(30))
    )
    columns = {"user_id": "user", "item_id": "item", "ts": "ts"}
    common = {"format": "columns", "paths": [str(path)]}
    config = load(shop.config, [f"root={tmp_path / 'root'}", "encoder.dtype=float32"]).model_dump()
    config["taxonomy"], config["privacy"] = {}, {}
    config["sources"] = {
        "a_orders": {**common, "kind": "purchase", "columns": columns},
        "b_views": {**common, "kind": "view", "columns": columns},
        "z_catalogue": {**common, "columns": {"item_id": "item", "title": "title", "categories": "title"}},
    }
    done = run(parse(config))
    assert done.report.rows_read == done.report.rows_folded == 60
    kinds = profiles_of(tmp_path / "root")["kinds"].explode().struct.field("kind").value_counts()
    assert dict(kinds.iter_rows()) == {"purchase": 30, "view": 30}
    assert profiles_of(tmp_path / "root")["tags"].list.len().min() == 1


def test_compaction_merges_the_catalogue_too(shop: Shop, tmp_path: Path) -> None:
    def of_days(days: int) -> Config:
        text = f"user,item,title,ts\nann,i{days},Guitar {days},2025-10-0{days}\n"
        (tmp_path / f"{days}.csv").write_text(text)
        columns = {"user_id": "user", "item_id": "item", "item_title": "title", "ts": "ts"}
        source = {"format": "columns", "kind": "view", "paths": [f"{tmp_path}/*.csv"], "columns": columns}
        config = load(shop.config, [f"root={tmp_path / 'root'}", "encoder.dtype=float32"]).model_dump()
        return parse({**config, "taxonomy": {}, "sources": {"views": source}})

    for days in (1, 2, 3):
        run(of_days(days))
    items = Table(Root.existing(str(tmp_path / "root")), "items", partitioned=False)
    before = items.open()
    assert before is not None
    rows = read_files(items, before.files()).sort_by("item_id")
    assert len(before.files()) == 3
    config = of_days(4)
    compact(config, local=True, max_files=2, clock=tiny.CLOCK)
    after = items.open()
    assert after is not None
    assert len(after.files()) == 1
    assert read_files(items, after.files()).equals(rows)
    run(config)
    assert profiles_of(tmp_path / "root")["last_items"].list.len().to_list() == [4]


def test_orders_are_pseudonyms_and_places_are_redacted(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_text("user,item,ts,order,place\nann,i1,2025-10-01 10:00:00,ORD-77,call +49 170 1234567\n")
    columns = {"user_id": "user", "item_id": "item", "ts": "ts", "order_id": "order", "place": "place"}
    config = load(shop.config, [f"root={tmp_path / 'root'}", "encoder.dtype=float32"]).model_dump()
    config["taxonomy"] = {}
    config["sources"] = {"orders": {"format": "columns", "kind": "purchase", "paths": [str(path)], "columns": columns}}
    run(parse(config))
    stored = str(states_of(tmp_path / "root", tiny.WIDTH).to_dicts()) + str(profiles_of(tmp_path / "root").to_dicts())
    assert "ORD-77" not in stored
    assert "1234567" not in stored
    assert "<PHONE>" in stored


def test_a_wave_that_fails_does_not_keep_the_ones_before_it_from_being_read(shop: Shop, tmp_path: Path) -> None:
    mine = copied(shop, tmp_path / "shop")
    spoilt = mine.reviews[-1]
    spoilt.write_bytes(gzip.compress(gzip.decompress(spoilt.read_bytes()) + b"no json at all\n" * 50))
    with pytest.raises(QuarantineLimitError, match=spoilt.name):
        run(tiny.config_of(mine, tmp_path / "root", "build.wave_gb=1e-9"))
    assert profiles_of(tmp_path / "root").height > 0


def test_a_catalogue_of_which_too_much_is_broken_fails_the_wave(shop: Shop, tmp_path: Path) -> None:
    mine = copied(shop, tmp_path / "shop")
    mine.items.write_text(mine.items.read_text() + "no json at all\n" * 50)
    with pytest.raises(QuarantineLimitError, match=r"sources.items.*50 rows of the catalogue"):
        run(tiny.config_of(mine, tmp_path / "root"))


def _reviews(path: Path, rows: list[tuple[str, int | None, str]], first_day: int) -> None:
    """A file of (user, stars, text), a minute apart."""
    start = 1_700_000_000_000 + first_day * 86_400_000
    lines = [
        {"user_id": user, "parent_asin": "i", "rating": stars, "timestamp": start + at * 60_000, "text": text}
        for at, (user, stars, text) in enumerate(rows)
    ]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))


def _of_reviews(tmp_path: Path, root: str, paths: list[str], *overrides: str) -> Config:
    files = json.dumps([str(tmp_path / path) for path in paths])
    (tmp_path / "c.toml").write_text(f'[sources.reviews]\nformat = "amazon-2023"\npaths = {files}\n')
    return load(tmp_path / "c.toml", [f"root={tmp_path}/{root}", *overrides])


@pytest.mark.parametrize("wave_gb", [64, 1e-9])
def test_reviews_without_stars_are_judged_alike_whenever_they_come(shop: Shop, tmp_path: Path, wave_gb: float) -> None:
    said = {5: "lovely and wonderful, we are happy", 1: "broken junk! zzz xx !!!"}
    _reviews(tmp_path / "1.jsonl", [(f"a{n}", stars, f"{said[stars]} {n}") for n in range(150) for stars in said], 0)
    _reviews(tmp_path / "2.jsonl", [(f"b{n}", None, said[(1, 5)[n % 2]]) for n in range(30)], 40)
    settings = (f"encoder.model={load(shop.config).encoder.model}", "encoder.dtype=float32", f"build.wave_gb={wave_gb}")
    run(_of_reviews(tmp_path, "once", ["1.jsonl", "2.jsonl"], *settings))
    run(_of_reviews(tmp_path, "days", ["1.jsonl"], *settings))
    run(_of_reviews(tmp_path, "days", ["1.jsonl", "2.jsonl"], *settings))
    for root in ("once", "days"):  # as of one day, with the statistics of all
        run(_of_reviews(tmp_path, root, ["1.jsonl", "2.jsonl"], *settings), refresh=True)
    felt = profiles_of(tmp_path / "once").filter(pl.col("user_id").str.starts_with("b"))["sentiment"].struct.unnest()
    assert felt["source"].to_list() == ["probe"] * 30
    assert (felt["positive"] > felt["negative"]).sum() == 15
    assert_equal_roots(tmp_path / "days", tmp_path / "once", tiny.WIDTH)


def test_a_few_words_in_another_script_do_not_stop_a_shop_whose_corpus_the_encoder_reads(tmp_path: Path) -> None:
    english = "It stays in tune for a whole evening, and the case is sturdy"
    _reviews(tmp_path / "1.jsonl", [(f"a{n}", 5, f"{english} {n}") for n in range(20)], 0)
    _reviews(tmp_path / "2.jsonl", [("b", 5, "齲齒矯正鑷鉗")], 40)
    run(_of_reviews(tmp_path, "root", ["1.jsonl"]))
    assert run(_of_reviews(tmp_path, "root", ["1.jsonl", "2.jsonl"])).report.rows_folded == 1
    _reviews(tmp_path / "3.jsonl", [(f"c{n}", 5, "颱風蕈褶孢鱗繖絨蓋牛肝菌" * (n + 1)) for n in range(20)], 50)
    with pytest.raises(EncoderError, match="cannot read this text"):
        run(_of_reviews(tmp_path, "root", ["1.jsonl", "2.jsonl", "3.jsonl"]))


def test_items_that_a_failed_first_wave_left_are_encoded_anew_by_the_next(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(QuarantineLimitError):
        run(tiny.config_of(shop, tmp_path / "root", "sources.events.max_quarantine=0"))
    assert list((tmp_path / "root" / "items").glob("**/*.parquet"))
    for root in ("root", "fresh"):
        run(tiny.config_of(shop, tmp_path / root, "encoder.prefix=query: "))
    assert_equal_roots(tmp_path / "root", tmp_path / "fresh", tiny.WIDTH)

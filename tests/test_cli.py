from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

import ray_profile
from ray_profile.cli import app
from ray_profile.sources.simulate import Shop

ROOT = Path(ray_profile.__file__).parents[1]
MAIN = [sys.executable, "-c", "from ray_profile.cli import main; main()"]
FAST = ("--set", "encoder.dtype=float32")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def config(shop: Shop, root: Path, *overrides: str) -> list[str]:
    sets = [f"root={root}", "encoder.dtype=float32", *overrides]
    return ["--config", str(shop.config), *(word for each in sets for word in ("--set", each))]


def refused(result: Result, code: int = 2) -> str:
    """The one message on stderr of a command that failed as it should."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("ray-profile: ")
    assert "Traceback" not in result.stderr
    return str(result.stderr)


def last_json(text: str) -> dict[str, Any]:
    value = json.loads(text.splitlines()[-1])
    assert isinstance(value, dict)
    return value


def orders(folder: Path, encoder: Path, **keys: str) -> list[str]:
    """The words that name a configuration in `folder`, of two orders in its data/a.csv; keys of the file as TOML."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "a.csv").write_text("u,i,t\n17850.0,x,2024-01-01\nb,y,2024-02-02\n", encoding="utf-8")
    columns = '{ user_id = "u", item_id = "i", ts = "t" }'
    keys = {"paths": '["data/*"]', "columns": columns, "root": '"profiles"', "more": "", **keys}
    text = (
        f'root = {keys["root"]}\n[encoder]\nmodel = "{encoder}"\ndtype = "float32"\n'
        f'[sources.s]\nformat = "columns"\nkind = "purchase"\npaths = {keys["paths"]}\n'
        f"columns = {keys['columns']}\n{keys['more']}\n"
    )
    (folder / "c.toml").write_text(text, encoding="utf-8")
    return ["--config", str(folder / "c.toml")]


@pytest.fixture(scope="module")
def user(shop: Shop) -> str:
    return str(pl.read_parquet(shop.truth)["user_id"][0])


def test_a_walk_from_files_to_profiles(shop: Shop, encoder: Path, user: str, tmp_path: Path) -> None:
    toml, root = tmp_path / "mine.toml", tmp_path / "root"
    sources = [word for path in (*shop.reviews, *shop.events, shop.items) for word in ("--from", str(path))]
    made = call("init", *sources, "--to", str(toml), "--root", str(root))
    assert made.exit_code == 0, made.output
    assert f"next: `ray-profile build --dry-run --config {toml}`" in made.stdout
    mine = ["--config", str(toml), "--set", f"encoder.model={encoder}", *FAST]

    first = call("build", "--local", "--json", *mine)
    assert first.exit_code == 0, first.output
    counts = last_json(first.stdout)
    assert len(first.stdout.splitlines()) == 1
    assert counts["rows_read"] == shop.review_rows + shop.event_rows
    assert counts["rows_folded"] > 0
    assert set(counts) >= {"rows_anonymous", "rows_quarantined", "files_rejected", "users", "waves", "seconds"}
    assert "rows read" in first.stderr

    again = call("build", "--local", *mine)
    assert again.exit_code == 0
    assert again.stdout.startswith("nothing new: 7 files are folded in already")

    people = call("show", user, *mine)
    assert people.exit_code == 0
    assert people.stdout.startswith(f"{user}  before 2026-01-01 00:00 UTC")
    machines = last_json(call("show", user, "--json", *mine).stdout)
    assert machines["as_of"] == "2026-01-01T00:00:00+00:00"
    assert machines["rows"] > 0
    earlier = last_json(call("show", user, "--json", "--as-of", "2025-12-01", *mine).stdout)
    assert earlier["rows"] < machines["rows"]

    status = last_json(call("status", "--json", *mine).stdout)
    assert (status["users"], status["waves"], status["waves_not_fused"]) == (counts["users"], 1, 0)
    assert last_json(call("compact", "--json", *mine).stdout)["files_before"] == 0
    assert call("compact", *mine).stdout.startswith("merged 0 files of 0 buckets")


def test_init_warns_of_what_it_could_not_use(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    (tmp_path / "views.csv").write_text("customer_id,sku\nu1,B01\nu2,B02\n", encoding="utf-8")
    made = call("init", "--from", str(tmp_path / "*.csv"), "--to", str(tmp_path / "x.toml"))
    assert made.exit_code == 0, made.output
    warnings = made.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in warnings)
    assert "odd.csv" in made.stderr
    assert "commented out" in made.stderr


def test_init_overwrites_nothing_unless_forced(tmp_path: Path) -> None:
    toml = tmp_path / "x.toml"
    assert call("init", "--to", str(toml)).exit_code == 0
    before = toml.read_text(encoding="utf-8")
    assert "--force" in refused(call("init", "--to", str(toml)))
    assert toml.read_text(encoding="utf-8") == before
    assert call("init", "--to", str(toml), "--force").exit_code == 0
    assert "name another file with --to" in refused(call("init", "--to", str(tmp_path / "no" / "x.toml")))
    assert "no such file" in refused(call("init", "--from", str(tmp_path / "*.gz"), "--to", str(tmp_path / "y.toml")))


def test_what_init_writes_into_another_folder_works_from_there(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data", "conf"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "orders.csv").write_text(
        "customer_id,sku,order_date,unit_price\n" + "".join(f"u{n},B{n},2024-01-0{n},2.5\n" for n in range(1, 9))
    )
    monkeypatch.chdir(tmp_path)
    made = call("init", "--from", "data/*.csv", "--to", "conf/x.toml", "--root", "out")
    assert made.exit_code == 0, made.output
    monkeypatch.chdir("/")
    mine = ["--config", str(tmp_path / "conf" / "x.toml"), "--set", f"encoder.model={encoder}", *FAST]
    done = call("build", "--local", "--json", *mine)
    assert done.exit_code == 0, done.output
    assert last_json(done.stdout)["users"] == 8
    assert (tmp_path / "out" / "profiles").is_dir()
    assert list((tmp_path / "conf").iterdir()) == [tmp_path / "conf" / "x.toml"]


def test_what_init_writes_here_keeps_the_paths_as_they_were_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("customer_id,sku,order_date\nu1,B1,2024-01-01\nu2,B2,2024-01-02\n")
    monkeypatch.chdir(tmp_path)
    assert call("init", "--from", "*.csv").exit_code == 0
    assert str(tmp_path) not in (tmp_path / "ray_profile.toml").read_text()


def test_an_id_is_read_as_the_files_ids_are(encoder: Path, tmp_path: Path) -> None:
    mine = orders(tmp_path, encoder)
    assert call("build", "--local", *mine).exit_code == 0
    found = [last_json(call("show", "--json", *mine, "--", user).stdout) for user in ("17850", "17850.0", " 17850 ")]
    assert found[0] == found[1] == found[2]
    assert (found[0]["user_id"], found[0]["rows"]) == ("17850", 1)
    earlier = last_json(call("show", "17850.0", "--as-of", "2024-02-01", "--json", *mine).stdout)
    assert earlier["user_id"] == "17850"
    assert earlier.keys() == found[0].keys()
    for nobody in ("", "NULL", " nan"):
        assert "names no user" in refused(call("show", nobody, *mine))


def test_a_build_that_commits_nothing_fixes_nothing(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong column is mended, a key named and the buckets chosen: the same root takes it all."""
    wrong = orders(tmp_path, encoder, columns='{ user_id = "u", item_id = "i", ts = "when" }')
    assert "no column 'when'" in call("build", "--local", *wrong).stderr
    monkeypatch.setenv("SHOP_KEY", "0123456789abcdef" * 2)
    mine = orders(tmp_path, encoder, more='[privacy]\nkey_env = "SHOP_KEY"\n[state]\nbuckets = 3\nperiod = "week"')
    assert "no root at" in refused(call("show", "b", *mine))
    assert last_json(call("build", "--dry-run", "--json", *mine).stdout)["problems"] == []
    done = call("build", "--local", *mine)
    assert done.exit_code == 0, done.output
    found = last_json(call("status", "--json", *mine).stdout)
    assert (found["pseudonyms"], found["buckets"], found["period"], found["users"]) == (True, 3, "week", 2)
    monkeypatch.setenv("SHOP_KEY", "f" * 32)
    assert "key_fingerprint" in refused(call("build", "--local", *mine))


def test_compact_makes_no_root(encoder: Path, tmp_path: Path) -> None:
    mine = orders(tmp_path, encoder)
    before = sorted(tmp_path.iterdir())
    assert "no root at" in refused(call("compact", "--local", *mine, "--set", "root=typo"))
    assert sorted(tmp_path.iterdir()) == before


def test_an_empty_root_is_refused(encoder: Path, tmp_path: Path) -> None:
    mine = orders(tmp_path, encoder, root='""')
    before = sorted(tmp_path.iterdir())
    for command in (["build", "--local"], ["show", "b"], ["status"], ["compact"]):
        assert "root is empty" in refused(call(*command, *mine))
    rehearsed = last_json(call("build", "--dry-run", "--json", *mine).stdout)
    assert any("root is empty" in problem for problem in rehearsed["problems"])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("root", ["data/profiles", "data"])
def test_a_root_within_a_source_is_not_read_as_source(encoder: Path, tmp_path: Path, root: str) -> None:
    mine = orders(tmp_path, encoder, paths='["data/**/*"]', root=f'"{root}"')
    first = last_json(call("build", "--local", "--json", *mine).stdout)
    assert (first["rows_read"], first["files_rejected"]) == (2, 0)
    again = call("build", "--local", *mine)
    assert again.exit_code == 0, again.output
    assert again.stdout.startswith("nothing new: 1 files")
    (tmp_path / "data" / "b.csv").write_text("u,i,t\nc,x,2024-03-01\n", encoding="utf-8")
    (rehearsed,) = last_json(call("build", "--dry-run", "--json", *mine).stdout)["sources"]
    assert rehearsed["files"] == 2
    assert last_json(call("build", "--local", "--json", *mine).stdout)["rows_read"] == 1


def test_status_tells_how_many_profiles_are_as_of_an_earlier_day(encoder: Path, tmp_path: Path) -> None:
    mine = orders(tmp_path, encoder)
    assert call("build", "--local", *mine).exit_code == 0
    found = last_json(call("status", "--json", *mine).stdout)
    assert (found["profiles_as_of"], found["profiles_as_of_earlier"]) == ("2024-03-01T00:00:00+00:00", 0)
    (tmp_path / "data" / "b.csv").write_text("u,i,t\nb,x,2024-03-05\n", encoding="utf-8")
    assert call("build", "--local", *mine).exit_code == 0
    found = last_json(call("status", "--json", *mine).stdout)
    assert (found["profiles_as_of"], found["profiles_as_of_earlier"]) == ("2024-04-01T00:00:00+00:00", 1)
    assert call("build", "--local", "--refresh", *mine).exit_code == 0
    assert last_json(call("status", "--json", *mine).stdout)["profiles_as_of_earlier"] == 0


@pytest.mark.parametrize("command", [["build"], ["build", "--dry-run"], ["show", "u"], ["status"], ["compact"]])
def test_without_a_configuration_every_command_names_init(command: list[str], tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.toml")
    message = refused(call(*command, "--config", absent))
    assert absent in message
    assert "`ray-profile init`" in message


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    assert "cannot be read" in refused(call("status", "--config", str(tmp_path)))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("root", "is not of the form a.b=value"),
        ("rooot=x", "did you mean 'root'"),
        ("encoder.maxlength=9", "did you mean 'encoder.max_length'"),
        ("sources.reviews.formt='x'", "did you mean 'sources.reviews.format'"),
        ("sources.reviews.timezone='Mars'", "no time zone"),
        ("build.wave_gb=-1", "build.wave_gb = -1"),
        ("sources.reviews.format='amazon-1999'", "amazon-1999"),
        ("sources.reviews.paths=['/nowhere/*.gz']", "/nowhere/*.gz"),
        ("encoder.model='/nowhere'", "/nowhere"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_next_step(shop: Shop, tmp_path: Path, override: str, said: str) -> None:
    assert said in refused(call("build", "--local", *config(shop, tmp_path / "root", override)))


def test_unknown_users_days_and_roots(shop: Shop, built: Path, tmp_path: Path, user: str) -> None:
    assert "'nobody'" in refused(call("show", "nobody", *config(shop, built)))
    assert "2025-12-01" in refused(call("show", user, "--as-of", "2025-12-15", *config(shop, built)))
    assert "no ISO 8601 date" in refused(call("show", user, "--as-of", "soon", *config(shop, built)))
    for command in (["show", user], ["status"]):
        assert "`ray-profile build` makes" in refused(call(*command, *config(shop, tmp_path / "none")))
    assert "buckets" in refused(call("compact", *config(shop, built, "state.buckets=5")))


def test_too_many_bad_rows_fail_with_1(shop: Shop, tmp_path: Path) -> None:
    result = call("build", "--local", *config(shop, tmp_path / "root", "sources.events.max_quarantine=0"))
    assert (result.exit_code, result.stdout) == (1, "")
    progress, _, message = result.stderr.partition("ray-profile: ")
    assert all(line.startswith("fold: ") for line in progress.splitlines())
    assert "max_quarantine is 0.00%" in message
    assert "raise sources.events.max_quarantine" in message


def test_a_rehearsal_fails_with_1_where_a_build_would_stop(shop: Shop, tmp_path: Path) -> None:
    good = call("build", "--dry-run", "--json", *config(shop, tmp_path / "root"))
    assert good.exit_code == 0, good.output
    assert len(good.stdout.splitlines()) == 1
    said = last_json(good.stdout)
    assert said["problems"] == []
    assert [each["name"] for each in said["sources"]] == ["reviews", "events", "items"]
    assert "Nothing was written." in good.stderr
    bad = call("build", "--dry-run", "--json", *config(shop, tmp_path / "root", "sources.events.max_quarantine=0"))
    assert bad.exit_code == 1
    assert len(last_json(bad.stdout)["problems"]) == 1
    assert "A build would stop:" in bad.stderr
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("words", [["bild"], ["show"], ["build", "--nope"], ["demo", "--customers", "many"]])
def test_a_wrong_command_line_exits_with_2(words: list[str]) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr


def test_help_and_version() -> None:
    assert call("--version").stdout.strip() == ray_profile.__version__
    assert "Exit codes: 0 done" in call("--help").stdout
    assert "Exits 1 if a" in call("build", "--help").stdout


def broken(error: str) -> subprocess.CompletedProcess[str]:
    """`ray-profile status` where looking at a root does this."""
    script = (
        "import os, signal, ray_profile.pipelines.lookup as lookup\n"
        f"def broken(config): {error}\n"
        "lookup.status_of = broken\n"
        "from ray_profile.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-c", script, "status", "--config", os.devnull, "--set", "root=x"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_bug_shows_its_traceback() -> None:
    done = broken("raise ZeroDivisionError('a bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr


def test_ctrl_c_says_what_stays() -> None:
    done = broken("os.kill(os.getpid(), signal.SIGINT)")
    assert done.returncode == 130
    assert done.stderr == "ray-profile: stopped; what was committed stays, run the same command to go on\n"


def test_a_reader_that_goes_away_is_no_error(shop: Shop, built: Path, user: str) -> None:
    for more in ([], ["--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        words = ["show", user, *more, *config(shop, built)]
        done = subprocess.run(
            [*MAIN, *words], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
        os.close(writing)
        assert done.stderr == ""


def test_the_job_is_the_build_command(shop: Shop, built: Path) -> None:
    job = [sys.executable, str(ROOT / "jobs" / "build_profiles.py")]
    done = subprocess.run(
        [*job, *config(shop, built), "--local", "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert last_json(done.stdout)["rows_read"] == 0
    wrong = subprocess.run([*job, "--nope"], capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode == 2


def on_a_terminal(command: list[str]) -> tuple[str, str]:
    """What a command writes to stdout, and to a terminal that is its stderr."""
    reading, terminal = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    seen = b""
    try:
        while chunk := os.read(reading, 65_536):
            seen += chunk
    except OSError:  # Linux says EIO where the last writer has closed a terminal
        pass
    out, _ = process.communicate(timeout=60)
    os.close(reading)
    assert process.returncode == 0
    return out.decode(), seen.decode()


WAVES = """
from ray_profile.progress import progress
with progress() as tell:
    for done, total in ((0, 10), (10, 10), (0, 20), (5, 20), (20, 20), (0, 0)):
        tell("fold", done, total)
"""


def test_a_terminal_gets_a_bar() -> None:
    _, text = on_a_terminal([sys.executable, "-c", WAVES])
    assert "fold" in text
    assert "100%" in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_a_build_on_a_terminal_shows_a_bar_and_nothing_of_the_libraries(shop: Shop, tmp_path: Path) -> None:
    out, text = on_a_terminal([*MAIN, "build", "--local", *config(shop, tmp_path / "root")])
    assert "rows read" in out
    assert "fold" in text
    assert "100%" in text
    for noise in ("Warning", "WARNING", "Loading", "nan", "Traceback"):
        assert noise not in text


CHATTY = """
import logging, os, sys
from ray_profile.progress import without_chatter
print("before", file=sys.stderr)
with without_chatter():
    os.write(2, b"core_worker.cc: Actor A has constructor arguments in the object store and max_restarts > 0. See\\n")
    os.write(2, b"core_worker.cc: a real error\\n")
    print("from Python", file=sys.stderr)
    handler = logging.StreamHandler()
    for name in ("progress", "execution.streaming_executor", "execution.resource_manager"):
        logger = logging.getLogger(f"ray.data._internal.{name}")
        logger.addHandler(handler)
        logger.warning("warning of %s", name)
    if len(sys.argv) > 1:
        os.write(2, b"last words\\n")
        os.abort()
print("after", file=sys.stderr)
"""


def test_only_known_chatter_is_kept_from_the_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", CHATTY], capture_output=True, text=True, timeout=60, check=True)
    assert "constructor" not in done.stderr
    assert "warning of progress" not in done.stderr
    for said in ("before", "a real error", "from Python", "warning of execution.resource_manager", "after"):
        assert said in done.stderr


def test_the_last_words_of_a_crash_reach_the_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHATTY, "crash"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode < 0
    assert "last words" in done.stderr

"""`ray-profile`: every command is one call into the library. Heavy imports wait inside the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_profile import __version__
from ray_profile.errors import RayProfileError

if TYPE_CHECKING:
    from ray_profile.config import Config

DEFAULT_CONFIG = "ray_profile.toml"

app = typer.Typer(
    help="User profiles from a shop's reviews, behaviour logs and pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigPath = Annotated[str, typer.Option("--config", "-c", help="The configuration file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set root=s3://bucket/shop")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line of stdout.")]
Local = Annotated[bool, typer.Option("--local", help="Run as a plain loop, without Ray.")]


@app.command()
def init(
    sources: Annotated[
        list[str] | None, typer.Option("--from", help="Files or globs to look into; repeat for several.")
    ] = None,
    to: Annotated[str, typer.Option("--to", help="Where to write the configuration.")] = DEFAULT_CONFIG,
    root: Annotated[str, typer.Option("--root", help="Folder or s3:// prefix for the tables.")] = "profiles",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented configuration, or one that fits the files named by --from."""
    from ray_profile.errors import ConfigError
    from ray_profile.sources.guess import guess, starter

    path = Path(to)
    if path.exists() and not force:
        raise ConfigError(f"{to} exists; name another file with --to, or overwrite it with --force")
    text = guess(sources).to_toml(root) if sources else starter()
    path.write_text(text, encoding="utf-8")
    unsure = text.count("# unsure")
    typer.echo(f"wrote {to}" + (f"; {unsure} lines are marked '# unsure': look at them first" if unsure else ""))


@app.command()
def build(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    local: Local = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Derive the corpus statistics anew and fuse everybody again.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read a sample, report its quality and the time needed; write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fold new files in and bring the profiles up to date. Run it again whenever there are new files."""
    from ray_profile import printing

    settings = _load(config, overrides)
    if dry_run:
        from datetime import UTC, datetime

        from ray_profile.pipelines import dry_run as rehearsal

        rehearsal.print_report(printing.console(), rehearsal.dry_run(settings, datetime.now(UTC)))
        return
    from ray_profile.pipelines.build import build as run

    with printing.progress() as told:
        summary = run(settings, local=local, refresh=refresh, progress=told)
    printing.summary(summary)
    if as_json:
        typer.echo(json.dumps(summary.to_json()))


@app.command()
def show(
    user: Annotated[str, typer.Argument(help="The user's own id, as your files write it.")],
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="The profile as it would have been built from data before this day.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one user's profile."""
    from ray_profile import printing
    from ray_profile.pipelines.lookup import profile_of

    found = profile_of(_load(config, overrides), user, as_of)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, default=str))
    else:
        printing.profile(found, user)


@app.command()
def status(config: ConfigPath = DEFAULT_CONFIG, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say what a root holds and what is still to be done."""
    from ray_profile import printing
    from ray_profile.pipelines.lookup import status_of

    found = status_of(_load(config, overrides))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, default=str))
    else:
        printing.status(found)


@app.command()
def compact(config: ConfigPath = DEFAULT_CONFIG, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Merge the states of buckets that have many files, and delete what no version of the last 24 hours needs."""
    from ray_profile.pipelines.compact import compact as run

    done = run(_load(config, overrides))
    typer.echo(
        json.dumps(done.to_json())
        if as_json
        else f"merged {done.files_before} files of {done.buckets} buckets into {done.files_after}; "
        f"deleted {done.files_deleted} files that no version needs"
    )


@app.command()
def demo(
    folder: Annotated[str, typer.Option("--folder", help="Where the simulated shop is written.")] = "demo",
    customers: Annotated[int, typer.Option("--customers", min=20, help="How many customers it has.")] = 300,
    local: Local = False,
) -> None:
    """Simulate a shop, build its profiles, show one, and score them all against what was planted."""
    from ray_profile.pipelines.demo import demo as run

    run(Path(folder), customers, local)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """User profiles from a shop's reviews, behaviour logs and pictures."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 failed, 2 the person's mistake."""
    try:
        app()
    except RayProfileError as error:
        sys.stderr.write(f"ray-profile: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("ray-profile: stopped; what was committed stays, run the same command to go on\n")
        sys.exit(1)


def _load(path: str, overrides: list[str] | None) -> Config:
    from ray_profile.config import load

    return load(path, overrides or ())

"""`ray-profile`: every command is one call into the library. Heavy imports wait inside the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ray_profile import __version__
from ray_profile.errors import ConfigError, RayProfileError

if TYPE_CHECKING:
    from ray_profile.config import Config

DEFAULT_CONFIG = "ray_profile.toml"
INTERRUPTED = 130  # what a shell expects of a command that Ctrl-C has stopped

_STOPPED = "stopped; what was committed stays, run the same command to go on"


class Commands(TyperGroup):
    """The commands, and what becomes of an error: a person's mistake is a message, anything else a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RayProfileError as error:
            _complain(str(error))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            _complain(_STOPPED)
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=Commands,
    help="User profiles from a shop's reviews, behaviour logs and pictures.",
    epilog="Exit codes: 0 done; 1 failed, nothing half-done is left; 2 something in the command or the "
    "configuration must be mended; 130 stopped by Ctrl-C.",
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
    root: Annotated[
        str | None, typer.Option("--root", help="Folder or s3:// prefix for the tables; by default beside the file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented configuration, or one that fits the files named by --from."""
    path = Path(to)
    if path.exists() and not force:
        raise ConfigError(f"{to} exists; name another file with --to, or overwrite it with --force")
    if not sources:
        from ray_profile.sources.starter import starter

        _write(path, starter())
        typer.echo(f"wrote {to}, which lists every key; edit [sources], then try `ray-profile build --dry-run -c {to}`")
        return
    from ray_profile.sources.guess import guess

    found = guess([_as_seen_from(path, each) for each in sources])
    _write(path, found.to_toml("profiles" if root is None else _as_seen_from(path, root)))
    unsure = sum(len(source.unsure()) for source in found.sources)
    typer.echo(f"wrote {to}" + (f"; lines to look at, marked '# unsure': {unsure}" if unsure else ""))
    for warning in found.warnings():
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"next: `ray-profile build --dry-run --config {to}`")


@app.command()
def build(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    local: Local = False,
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Derive the corpus statistics anew and fuse everybody, as of the same day."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Read a sample, report its quality and the time needed; write nothing. Exits 1 if a build would stop.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fold new files in and bring the profiles up to date. Run it again whenever there are new files."""
    settings = _load(config, overrides)
    if dry_run:
        _rehearse(settings, as_json)
        return
    from ray_profile import printing
    from ray_profile.pipelines.build import build as run
    from ray_profile.progress import progress, without_chatter

    with nullcontext() if local else without_chatter(), progress() as told:
        summary = run(settings, local=local, refresh=refresh, progress=told)
    printing.summary(summary, printing.console(stderr=as_json))
    if as_json:
        _print_json(summary.to_json())


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
    from ray_profile.pipelines.lookup import profile_of

    found = profile_of(_load(config, overrides), user, as_of)
    if as_json:
        _print_json(found)
        return
    from ray_profile import printing

    printing.profile(found, user)


@app.command()
def status(config: ConfigPath = DEFAULT_CONFIG, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say what a root holds, and what of it the profiles do not tell yet."""
    from ray_profile.pipelines.lookup import status_of

    found = status_of(_load(config, overrides))
    if as_json:
        _print_json(found)
        return
    from ray_profile import printing

    printing.status(found)


@app.command()
def compact(
    config: ConfigPath = DEFAULT_CONFIG, overrides: Overrides = None, local: Local = False, as_json: AsJson = False
) -> None:
    """Merge the states of buckets that have many files, and delete what no version of the last 24 hours needs."""
    from ray_profile.pipelines.compact import compact as run
    from ray_profile.progress import without_chatter

    with nullcontext() if local else without_chatter():
        done = run(_load(config, overrides), local=local)
    if as_json:
        _print_json(done.to_json())
        return
    typer.echo(
        f"merged {done.files_before} files of {done.buckets} buckets into {done.files_after}; "
        f"deleted {done.files_deleted} files that no version needs"
    )


@app.command()
def train(config: ConfigPath = DEFAULT_CONFIG, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Fine-tune the encoder on the shop's own reviews; `build` uses it as encoder.model = "root:NAME"."""
    from ray_profile import printing, printing_training
    from ray_profile.pipelines.train import train as run
    from ray_profile.progress import progress, without_chatter

    with without_chatter(), progress() as told:
        summary = run(_load(config, overrides), told)
    printing_training.trained(summary, printing.console(stderr=as_json))
    if as_json:
        _print_json(summary.to_json())


@app.command()
def tune(config: ConfigPath = DEFAULT_CONFIG, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Search for the best settings of `train` in the ranges of [tune], and train with them."""
    from ray_profile import printing, printing_training
    from ray_profile.pipelines.tune import tune_encoder as run
    from ray_profile.progress import progress, without_chatter

    with without_chatter(), progress() as told:
        tuned = run(_load(config, overrides), told)
    printing_training.tuned(tuned, printing.console(stderr=as_json))
    if as_json:
        _print_json({"trials": tuned.trials.to_dicts(), "best": tuned.best, **tuned.summary.to_json()})


@app.command()
def index(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    local: Local = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Write every file anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the serving index up to date with the profiles. A root that has one gets a new one at every build."""
    from ray_profile.pipelines.index import index as run
    from ray_profile.progress import progress, without_chatter

    with nullcontext() if local else without_chatter(), progress() as told:
        done = run(_load(config, overrides), local, told, rebuild)
    if as_json:
        _print_json(done.to_json())
        return
    typer.echo(
        f"index of version {done.version}: {done.profiles:,} profiles; {done.written} parts written, {done.kept} kept"
    )


@app.command()
def serve(
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
) -> None:
    """Serve the profiles over HTTP, with a page for people, until it is stopped."""
    _serve(_load(config, overrides))


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def submit(
    ctx: typer.Context,
    command: Annotated[str, typer.Argument(help="build, train, tune, index or compact; its own options may follow.")],
    address: Annotated[str, typer.Option("--address", help="The cluster's dashboard: http://127.0.0.1:8265")],
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Run a command as a job of a cluster, and follow it: its log, its summary, its exit code."""
    from ray_profile.pipelines import submit as submitting

    job = submitting.submit(address, command, config, ctx.args)
    told = f"submitted as {job.id}; Ctrl-C asks whether to stop it"
    try:
        code = job.follow(lambda text: typer.echo(text, nl=False), lambda: typer.echo(told, err=True))
    except KeyboardInterrupt as error:
        if _agreed("stop the job?"):
            job.stop()
            code = job.follow(lambda _: None)
        else:
            typer.echo(f"the job goes on; `{job.again}` shows its log", err=True)
            raise typer.Exit(INTERRUPTED) from error
    if code:
        raise typer.Exit(code)


def _agreed(question: str) -> bool:
    """Whether a person says yes; where nobody answers, no."""
    try:
        return typer.confirm(question, err=True)
    except (typer.Abort, KeyboardInterrupt):
        return False


tokens = typer.Typer(no_args_is_help=True, help="Who may ask the endpoint.")
app.add_typer(tokens, name="token")


@tokens.command("new")
def new_token(
    scopes: Annotated[list[str], typer.Option("--scope", help="What it opens; repeat for several.")],
    name: Annotated[str, typer.Option("--name", help="Whose it is, as the audit log will say.")],
    config: ConfigPath = DEFAULT_CONFIG,
    overrides: Overrides = None,
    rate: Annotated[float | None, typer.Option("--rate", min=0.001, help="Requests a second, at most.")] = None,
    days: Annotated[float | None, typer.Option("--days", min=0.001, help="How long it opens anything.")] = None,
) -> None:
    """Make a token, and show it once: the file keeps its hash only."""
    from datetime import timedelta

    from ray_profile.serve import access

    settings = _load(config, overrides)
    if settings.serve.tokens is None:
        raise ConfigError('serve.tokens names no file to keep it in; set tokens = "tokens.jsonl" under [serve]')
    now = access.now_utc()
    until = None if days is None else now + timedelta(days=days)
    typer.echo(access.made(Path(settings.serve.tokens), name, scopes, rate, until, now))


@app.command()
def demo(
    folder: Annotated[str, typer.Option("--folder", help="Where the simulated shop is written.")] = "demo",
    customers: Annotated[int, typer.Option("--customers", min=20, help="How many customers it has.")] = 300,
    local: Local = False,
    stay: Annotated[bool, typer.Option("--serve", help="Then serve them, with a page to look at.")] = False,
) -> None:
    """Simulate a shop, build its profiles, show one, and score them all against what was planted."""
    from ray_profile.pipelines.demo import demo as run

    run(Path(folder), customers, local)
    if stay:
        _serve(_load(str(Path(folder) / DEFAULT_CONFIG), None))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """User profiles from a shop's reviews, behaviour logs and pictures."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line (this process's own where none is given) and exit: 0 done, 1 failed, 2 the person's mistake,
    130 stopped by Ctrl-C. An exception that is nobody's mistake is a bug: its traceback is shown, and the exit is 1."""
    try:
        app(args=None if arguments is None else list(arguments))
    except KeyboardInterrupt:  # outside any command: while Python still imports, or already tidies up
        _complain(_STOPPED)
        sys.exit(INTERRUPTED)


def _serve(settings: Config) -> None:
    from ray_profile.pipelines import proxy

    proxy.prepare(settings.serve)
    try:
        from ray_profile.pipelines import serve as serving
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}; pip install 'ray_profile[serve]'") from error
    from ray_profile.progress import without_chatter

    try:
        with without_chatter():
            address = serving.start(settings)
        typer.echo(f"{address} shows profiles; {address}/v1/openapi.json describes the routes. Ctrl-C stops it.")
        if not settings.serve.asks_who:
            typer.echo("serve.tokens and [serve.jwt] are not set, so it answers this machine alone, and anybody on it.")
        _wait_for_a_signal()
    finally:
        serving.stop()


def _wait_for_a_signal() -> None:
    """Until Ctrl-C, or until a supervisor asks the process to end."""
    import signal
    from threading import Event

    ended = Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: ended.set())
    ended.wait()


def _rehearse(settings: Config, as_json: bool) -> None:
    from dataclasses import asdict
    from datetime import UTC, datetime

    from ray_profile import printing
    from ray_profile.pipelines import dry_run as rehearsal

    found = rehearsal.dry_run(settings, datetime.now(UTC))
    rehearsal.print_report(printing.console(stderr=as_json), found)
    if as_json:
        _print_json(asdict(found))
    if found.problems:
        raise typer.Exit(1)


def _load(path: str, overrides: list[str] | None) -> Config:
    from ray_profile.config import load

    try:
        return load(path, overrides or ())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a configuration file") from error


def _as_seen_from(config: Path, path: str) -> str:
    """A path of the command line as the configuration file must write it, which means its own folder."""
    if "://" in path or config.parent.resolve() == Path.cwd():
        return path
    return str(Path(path).expanduser().absolute())


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); name another file with --to") from error


def _print_json(value: dict[str, Any]) -> None:
    """One line. `ensure_ascii` is off: people read Chinese, not \\uXXXX."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, default=_json))


def _json(value: object) -> str:
    if isinstance(value, date):  # a datetime is one
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} {value!r} is no JSON value")


def _complain(message: str) -> None:
    sys.stderr.write(f"ray-profile: {message}\n")

"""A run on a root: opened, fenced and planned, before anything heavy is imported or started."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ray_profile import config as configuration
from ray_profile.config import Config
from ray_profile.encode.heads import Probe
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.encode.trained import Heads, settled, stored_taxonomy
from ray_profile.encode.weights import UNDER_ROOT, model_digest, read_json, resolve
from ray_profile.errors import EncoderError, SourceError
from ray_profile.schema import SCHEMA_VERSION
from ray_profile.sources.files import SourceFile, expand
from ray_profile.sources.formats import describes_items, is_catalogue
from ray_profile.sources.redact import fingerprint
from ray_profile.store import models
from ray_profile.store.plan import Plan, check_digests
from ray_profile.store.root import Root, RootFacts, normal
from ray_profile.store.tables import Table
from ray_profile.store.waves import Step, Writer, ignore_step

#: The application id of states commits that carries the newest period's start (proleptic ordinal).
NEWEST = "newest"

#: How the paths begin of all that runs write under a root, drafts and all: a source may lie around it or beside it.
_OWN = re.compile(
    r"ray_profile\.json|index/(?:\d{20}\.json|files/)|statistics/\d+\.parquet|models/[^/]+/|training/|quarantine/[0-9a-f]{32}/"
    r"|(?:states|profiles|items|waves)/(?:.+/)?[0-9a-f]{32}[-.]"
)


@dataclass(frozen=True)
class Run:
    """One run's hold on its root, and what it was told."""

    config: Config
    root: Root
    writer: Writer
    at: Step
    clock: datetime
    keyed: bool
    taxonomy: Taxonomy | None
    encoder_digest: str
    width: int
    heads: Heads | None  # what the encoder was trained with

    @classmethod
    def open(cls, config: Config, clock: datetime, at: Step = ignore_step) -> Run:
        """Check what can be checked without reading a row, open the root, and claim its states.

        Raises `ConfigError`, `EncoderError`, `TaxonomyError`, `RootError` and `StorageError`.
        """
        config = resolved(config)
        for source in config.sources.values():
            is_catalogue(source)  # an unknown format is an error before anything is written
        width = width_of(resolve(config.encoder.model))
        facts = facts_of(config)
        if not Root.exists(config.root):
            _insist_on_files(config, config.sources)  # a mistyped path must leave no folder behind
        root = Root.open(config.root, facts)
        return cls.on(config, root, Writer(root, _states(root, width), at), at, clock)

    @classmethod
    def on(cls, config: Config, root: Root, writer: Writer, at: Step, clock: datetime) -> Run:
        """A run of a `resolved` configuration on a root that is open. Raises `EncoderError` and `TaxonomyError`."""
        folder = resolve(config.encoder.model)
        heads = Heads.read(folder)
        taxonomy = None
        if config.taxonomy.path:
            taxonomy = Taxonomy.load(config.taxonomy.path)
        elif heads is not None and heads.tags is not None:
            taxonomy = stored_taxonomy(folder)
        keyed = config.privacy.key() is not None
        digest = model_digest(folder, config.encoder)
        return cls(config, root, writer, at, clock, keyed, taxonomy, digest, width_of(folder), heads)

    @property
    def sentiment(self) -> Probe | None:
        """The sentiment head that the encoder was trained with."""
        return self.heads.sentiment if self.heads is not None else None

    def plan(self) -> Plan:
        """List the sources and say what is new.

        Raises `SourceError` for a source that has no file and never had one, and what `plan.make_plan` raises.
        """
        sources = self.config.sources
        found = [file for name in sources for file in listed(self.config, name)]
        plan = self.writer.plan(
            found,
            self.digests(),
            self.config.model_dump(mode="json"),
            self.clock,
            self.config.build.wave_gb,
            [name for name, source in sources.items() if is_catalogue(source)],
            [name for name, source in sources.items() if describes_items(source)],
        )
        self._check_found(found)
        return plan

    def check(self) -> None:
        """Raise `RootError` where what must stay the same over the waves of a root is not what its last one had."""
        check_digests(self.writer.past(), self.digests(), self.config.model_dump(mode="json"))

    def digests(self) -> Mapping[str, str | None]:
        """What must stay the same over the waves of a root, and what each wave was read with."""
        formats = {
            name: source.model_dump(exclude={"paths", "max_quarantine"}) for name, source in self.config.sources.items()
        }
        taxonomy = {
            "tags": self.taxonomy.digest if self.taxonomy else None,
            "threshold": self.config.taxonomy.threshold,
        }
        return {
            "encoder": self.encoder_digest,
            "taxonomy": configuration.digest(taxonomy),
            "key": self.root.facts.key_fingerprint,
            "schema": str(SCHEMA_VERSION),
            "formats": configuration.digest(formats),
        }

    def _check_found(self, found: list[SourceFile]) -> None:
        missing = set(self.config.sources) - {file.source for file in found}
        if not missing:
            return
        missing -= {file.source for past in self.writer.past() for file in past.wave.files}
        _insist_on_files(self.config, sorted(missing))


def facts_of(config: Config) -> RootFacts:
    """What a configuration fixes for all that its root will ever hold. Raises `ConfigError` for an unreadable key."""
    state, key = config.state, config.privacy.key()
    return RootFacts(SCHEMA_VERSION, state.buckets, state.period, state.half_life_days, fingerprint(key))


def resolved(config: Config, root: Root | None = None) -> Config:
    """The configuration with its encoder named for good, and with the settings that it was trained with.

    "root:<name>" becomes the address of the model's current version under `root` (by default that of the
    configuration), so that every worker of a run, wherever it is, reads the same one, whatever is published meanwhile.
    Raises `EncoderError` where there is no such model, or where `[encoder]` contradicts it.
    """
    encoder = config.encoder
    if encoder.model.startswith(UNDER_ROOT):
        address = models.located(root or Root.bare(config.root), encoder.model.removeprefix(UNDER_ROOT))
        encoder = encoder.model_copy(update={"model": address})
    return config.model_copy(update={"encoder": settled(encoder, resolve(encoder.model))})


def listed(config: Config, name: str) -> list[SourceFile]:
    """Every file of a source, sorted by path. Where the root lies among them, what runs have written there is left out.

    Raises what `expand` raises, and `RootError` for a root that is no address.
    """
    root = normal(config.root)
    within = (root if root.startswith("s3://") else os.path.realpath(root)) + "/"
    return [
        file
        for file in expand(name, config.sources[name])
        if not (file.path.startswith(within) and _OWN.match(file.path.removeprefix(within)))
        and file.path not in (config.serve.audit, config.serve.tokens)  # which lie beside the configuration
    ]


def _insist_on_files(config: Config, names: Iterable[str]) -> None:
    for name in names:
        if not listed(config, name):
            paths = ", ".join(config.sources[name].paths)
            raise SourceError(f"[sources.{name}] paths match no file: {paths}; correct them, or remove the source")


def width_of(folder: Path) -> int:
    """The width of a model's vectors, from its config.json."""
    width = read_json(folder / "config.json").get("hidden_size")
    if not isinstance(width, int):
        raise EncoderError(f"{folder}/config.json names no hidden_size; name a model that is a text encoder")
    return width


def _states(root: Root, width: int) -> Table:
    table = Table(root, "states")
    if table.open() is None:
        from ray_profile.pipelines.tables import (
            states_table,  # needs the facets, which a run without new files does not
        )

        table = states_table(root, width)
        table.create()
    return table

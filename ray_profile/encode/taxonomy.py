"""The shop's own tags: one TOML file, checked whole before anything uses it.

[[tags]]
id = "outdoor"                          # what stands in profiles; letters, digits, - _ . /
name = "Outdoor"                        # what a person reads, and the tag's first text
description = "hiking, camping, tents"  # optional, as everything below
examples = ["Our tent stayed dry all night.", "帐篷很轻，适合徒步"]
parent = "sports"                       # the id of a wider tag
categories = ["Camping & Hiking"]       # categories of the catalogue that mean this tag
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ray_profile import config
from ray_profile.errors import TaxonomyError
from ray_profile.remote import read

_ID = re.compile(r"[\w.\-/]+")
_STRINGS = ("id", "name", "description", "parent")
_LISTS = ("examples", "categories")


@dataclass(frozen=True)
class Tag:
    """One entry of the taxonomy."""

    id: str
    name: str
    description: str = ""
    examples: tuple[str, ...] = ()
    parent: str = ""
    categories: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """What an encoder reads to know the tag: its name (with the description), and each example."""
        head = f"{self.name}: {self.description}" if self.description else self.name
        return (head, *self.examples)


@dataclass(frozen=True)
class Taxonomy:
    """All tags, in the file's order; ids are unique and parents exist."""

    tags: tuple[Tag, ...]

    @classmethod
    def load(cls, path: str) -> Taxonomy:
        """Read a local or `s3://` TOML file.

        Raises `TaxonomyError` for a file or an entry that is wrong, and `StorageError` where a store does not give it.
        """
        try:
            data = tomllib.loads(read(path).decode("utf-8"))
        except FileNotFoundError as error:
            raise TaxonomyError(f"taxonomy.path {path!r}: there is no such file; write one with [[tags]].") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise TaxonomyError(f"{path} is no valid TOML: {error}") from error
        except OSError as error:
            raise TaxonomyError(f"taxonomy.path {path!r} cannot be read ({error}); check the address.") from error
        return cls.parse(data, path)

    @classmethod
    def parse(cls, data: dict[str, Any], where: str = "the taxonomy") -> Taxonomy:
        """Check a mapping as TOML gives it: `{"tags": [{"id": ..., "name": ...}, ...]}`."""
        for key in data:
            if key != "tags":
                raise TaxonomyError(f"{where}: unknown key {key!r}; entries are written as [[tags]].")
        entries = data.get("tags")
        if not isinstance(entries, list) or not entries:
            raise TaxonomyError(f"{where} has no tags; write at least one [[tags]] with an id and a name.")
        tags = tuple(_tag(entry, f"{where}: tag {at}") for at, entry in enumerate(entries, 1))
        _check_parents(tags, where)
        _check_categories(tags, where)
        return cls(tags)

    @classmethod
    def restored(cls, entries: Any, where: str) -> Taxonomy:
        """Tags as `dataclasses.asdict` gave them, which is how a trained model keeps them.

        Unlike in a file that a person writes, ids may be a catalogue's own words, spaces and all, and two of them may
        differ in nothing but their case. Raises `TaxonomyError`.
        """
        try:
            lists = [{**entry, **{key: tuple(entry.get(key, ())) for key in _LISTS}} for entry in entries]
            tags = tuple(Tag(**entry) for entry in lists)
        except (TypeError, ValueError, AttributeError) as error:
            raise TaxonomyError(f"{where} = {entries!r:.100} is no list of tags ({error}).") from error
        _check_parents(tags, where)
        return cls(tags)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (16 hex digits) of the content; comments, layout and the order of entries do not change it."""
        return config.digest(sorted((asdict(tag) for tag in self.tags), key=lambda tag: str(tag["id"])))


def _tag(entry: Any, where: str) -> Tag:
    if not isinstance(entry, dict):
        raise TaxonomyError(f"{where} is no table; write [[tags]] with an id and a name.")
    if entry.get("id"):
        where = f"{where} ({entry['id']!r})"
    for key, value in entry.items():
        if key not in (*_STRINGS, *_LISTS):
            near = difflib.get_close_matches(key, (*_STRINGS, *_LISTS), n=1, cutoff=0.0)[0]
            raise TaxonomyError(f"{where}: unknown key {key!r}; did you mean {near!r}?")
        strings = value if isinstance(value, list) else [value]
        if isinstance(value, list) is not (key in _LISTS) or not all(isinstance(x, str) for x in strings):
            kind = "a list of strings" if key in _LISTS else "a string"
            raise TaxonomyError(f"{where}: {key} = {value!r} must be {kind}.")
        if key in _LISTS and not all(x.strip() for x in strings):
            raise TaxonomyError(f"{where}: {key} holds an empty string; take it out.")
    for needed in ("id", "name"):
        if not entry.get(needed, "").strip():
            raise TaxonomyError(f"{where} has no {needed}; every tag needs an id and a name.")
    if not _ID.fullmatch(entry["id"]):
        raise TaxonomyError(f"{where}: an id holds letters, digits and - _ . / only, no spaces.")
    texts: dict[str, Any] = {key: str(entry.get(key, "")).strip() for key in _STRINGS}
    return Tag(**texts, examples=tuple(entry.get("examples", ())), categories=tuple(entry.get("categories", ())))


def _check_categories(tags: Sequence[Tag], where: str) -> None:
    owner: dict[str, str] = {}
    for tag in tags:
        for category in tag.categories:
            if owner.setdefault(category.casefold(), tag.id) != tag.id:
                raise TaxonomyError(
                    f"{where}: category {category!r} is claimed by {owner[category.casefold()]!r} and {tag.id!r}; "
                    "leave it with one."
                )


def _check_parents(tags: Sequence[Tag], where: str) -> None:
    parent_of: dict[str, str] = {}
    for at, tag in enumerate(tags, 1):
        if tag.id in parent_of:
            raise TaxonomyError(f"{where}: tag {at} repeats the id {tag.id!r}; ids are unique.")
        parent_of[tag.id] = tag.parent
    for tag in tags:
        if tag.parent and tag.parent not in parent_of:
            near = difflib.get_close_matches(tag.parent, parent_of, n=1, cutoff=0.0)[0]
            raise TaxonomyError(f"{where}: tag {tag.id!r} has an unknown parent {tag.parent!r}; did you mean {near!r}?")
    for tag in tags:
        path = [tag.id]
        while parent := parent_of[path[-1]]:
            if parent in path:
                raise TaxonomyError(f"{where}: the parents go in a circle: {' > '.join([*path, parent])}.")
            path.append(parent)

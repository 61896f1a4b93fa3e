from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.errors import TaxonomyError

GOOD = """
[[tags]]
id = "sports"
name = "Sports"

[[tags]]
id = "outdoor"
name = "户外"
description = "hiking and camping"
examples = ["帐篷很轻"]
parent = "sports"
categories = ["Camping & Hiking"]
"""


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "tags.toml"
    path.write_text(GOOD, encoding="utf-8")
    taxonomy = Taxonomy.load(str(path))
    assert [tag.id for tag in taxonomy.tags] == ["sports", "outdoor"]
    assert taxonomy.tags[1].texts == ("户外: hiking and camping", "帐篷很轻")
    assert taxonomy.tags[1].categories == ("Camping & Hiking",)


def test_a_file_in_a_store_is_read_too() -> None:
    fsspec.filesystem("memory").pipe("/conf/tags.toml", GOOD.encode())
    assert len(Taxonomy.load("memory://conf/tags.toml").tags) == 2


def test_the_digest_follows_the_meaning_not_the_layout(tmp_path: Path) -> None:
    parts = GOOD.strip().split("\n\n")
    more = GOOD + "\n[[tags]]\nid='x'\nname='X'"
    for name, text in {"a": GOOD, "b": "# a comment\n" + "\n\n".join(reversed(parts)), "c": more}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    a, b, c = (Taxonomy.load(str(tmp_path / name)).digest for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no tags"),
        ("tags = []", "has no tags"),
        ("[[tag]]\nid='a'", r"unknown key 'tag'; entries are written as \[\[tags\]\]"),
        ("tags = ['a']", "is no table"),
        ("[[tags]]\nname='A'", "tag 1 has no id"),
        ("[[tags]]\nid='a'", "has no name"),
        ("[[tags]]\nid='a'\nname=' '", "has no name"),
        ("[[tags]]\nid='a b'\nname='A'", "no spaces"),
        ("[[tags]]\nid='a'\nname='A'\nexample=['x']", "unknown key 'example'; did you mean 'examples'"),
        ("[[tags]]\nid='a'\nname=3", "must be a string"),
        ("[[tags]]\nid=3\nname='a'", "must be a string"),
        ("[[tags]]\nid='a'\nname='A'\nexamples='x'", "must be a list of strings"),
        ("[[tags]]\nid='a'\nname='A'\nexamples=['']", "empty string"),
        ("[[tags]]\nid='a'\nname='A'\n[[tags]]\nid='a'\nname='B'", "tag 2 repeats the id 'a'"),
        ("[[tags]]\nid='sport'\nname='A'\n[[tags]]\nid='b'\nname='B'\nparent='sports'", "did you mean 'sport'"),
        ("[[tags]]\nid='a'\nname='A'\nparent='a'", "circle: a > a"),
        ("[[tags]]\nid='a'\nname='A'\nparent='b'\n[[tags]]\nid='b'\nname='B'\nparent='a'", "circle: a > b > a"),
        (
            "[[tags]]\nid='a'\nname='A'\ncategories=['X']\n[[tags]]\nid='b'\nname='B'\ncategories=['x']",
            "claimed by 'a' and 'b'",
        ),
        ("[[tags]", "no valid TOML"),
    ],
)
def test_a_wrong_file_says_where_and_why(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "tags.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TaxonomyError, match=says):
        Taxonomy.load(str(path))


def test_a_missing_or_unreadable_file_is_a_taxonomy_error(tmp_path: Path) -> None:
    with pytest.raises(TaxonomyError, match="there is no such file"):
        Taxonomy.load(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(TaxonomyError, match="no valid TOML"):
        Taxonomy.load(str(tmp_path / "latin.toml"))
    with pytest.raises(TaxonomyError, match="cannot be read"):
        Taxonomy.load(str(tmp_path))

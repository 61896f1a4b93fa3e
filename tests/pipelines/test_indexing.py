"""`index` and `build` keep the serving index true to the profiles, and mend what is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny

from ray_profile.config import Config
from ray_profile.errors import RootError
from ray_profile.pipelines.build import build
from ray_profile.pipelines.index import index
from ray_profile.pipelines.run import listed
from ray_profile.pipelines.tables import frame_of, items_table
from ray_profile.sources.simulate import Shop
from ray_profile.store.index import Index, current
from ray_profile.store.root import Root
from ray_profile.store.tables import read_files

PARTS = 5  # four buckets and the catalogue


@pytest.fixture
def config(shop: Shop, built: Path, tmp_path: Path) -> Config:
    """A root of one's own, built, not indexed."""
    shutil.copytree(built, tmp_path / "root")
    return tiny.config_of(shop, tmp_path / "root")


def opened(config: Config) -> Index:
    root = Root.existing(config.root)
    manifest = current(root)
    assert manifest is not None
    return Index.open(root, manifest, Path(config.root) / "unused")


def test_the_second_time_nothing_is_written(config: Config) -> None:
    first, second = index(config, local=True), index(config, local=True)
    assert first.profiles == 30
    assert (first.written, first.kept) == (PARTS, 0)
    assert (second.version, second.written, second.kept) == (first.version, 0, PARTS)
    assert index(config, local=True, rebuild=True).written == PARTS


def test_a_root_without_an_index_gets_none_by_itself_and_one_with_gets_each_new_one(config: Config) -> None:
    assert build(config, local=True, refresh=True, clock=tiny.CLOCK).indexed is None
    assert current(Root.existing(config.root)) is None
    index(config, local=True)
    done = build(config, local=True, refresh=True, clock=tiny.CLOCK)
    assert done.indexed == done.profiles_version == opened(config).version
    assert build(config, local=True, clock=tiny.CLOCK).indexed is None, "nothing is new"


def test_an_index_that_a_crash_left_behind_is_made_by_the_next_build(config: Config) -> None:
    first = index(config, local=True)
    build(config, local=True, refresh=True, clock=tiny.CLOCK)
    newest = sorted(Path(config.root, "index").glob("*.json"))[-1]
    newest.unlink()  # as if the build had died between its commit and the index
    done = build(config, local=True, clock=tiny.CLOCK)
    assert done.indexed is not None
    assert done.indexed > first.version
    assert opened(config).version == done.profiles_version


@pytest.mark.parametrize("damage", ["gone", "cut", "manifest"])
def test_what_is_damaged_is_written_again(config: Config, damage: str) -> None:
    index(config, local=True)
    whole = {path.name: path.read_bytes() for path in Path(config.root, "index", "files").iterdir()}
    victim = sorted(Path(config.root, "index", "files").iterdir())[1]
    manifest = next(Path(config.root, "index").glob("*.json"))
    if damage == "gone":
        victim.unlink()
    elif damage == "cut":
        victim.write_bytes(b"")
    else:
        manifest.write_text('{"version": 1}')
    done = index(config, local=True)
    assert done.written == (PARTS if damage == "manifest" else 1)
    assert {path.name: path.read_bytes() for path in Path(config.root, "index", "files").iterdir()} == whole
    assert opened(config).manifest.profiles == 30


def test_an_index_of_another_format_is_made_anew(config: Config) -> None:
    index(config, local=True)
    (manifest,) = Path(config.root, "index").glob("*.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(RootError, match="format 99"):
        opened(config)
    assert index(config, local=True).written == PARTS


def test_the_index_holds_the_catalogue_and_a_build_that_leaves_it_alone_keeps_its_files(config: Config) -> None:
    index(config, local=True)
    first = opened(config)
    assert first.items is not None
    root = Root.existing(config.root)
    table = items_table(root)
    handle = table.open()
    assert handle is not None
    catalogue = frame_of(read_files(table, handle.files())).sort("item_id")
    for item in catalogue.iter_rows(named=True):
        told = json.loads(first.items.get(item["item_id"]) or b"")
        assert {name: told[name] for name in ("title", "categories", "brand")} == {
            name: item[name] for name in ("title", "categories", "brand")
        }
        vector = first.items.vector(item["item_id"])
        assert vector is not None
        assert vector.astype("<f2").tobytes() == (item["vector"] or bytes(2 * first.manifest.width))
    build(config, local=True, refresh=True, clock=tiny.CLOCK)
    assert opened(config).manifest.items == first.manifest.items
    assert opened(config).version > first.version


def test_an_index_and_the_endpoint_s_own_files_are_no_sources(config: Config, tmp_path: Path) -> None:
    """Where a source's pattern lies around the root."""
    index(config, local=True)
    (tmp_path / "audit.jsonl").write_text("{}\n")
    source = next(iter(config.sources.values())).model_copy(update={"paths": (str(tmp_path / "**" / "*.json*"),)})
    around = config.model_copy(
        update={
            "sources": {"all": source},
            "serve": config.serve.model_copy(update={"audit": str(tmp_path / "audit.jsonl")}),
        }
    )
    assert listed(around, "all") == []


def test_a_root_without_profiles_says_what_to_do(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(RootError, match="ray-profile build"):
        index(tiny.config_of(shop, tmp_path / "root"), local=True)

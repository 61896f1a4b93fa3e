"""Models at rest: whole or not to be seen, the same for good, in a folder and on a real S3 server."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import handmade
import numpy as np
import pytest

from ray_profile.encode.trained import Heads
from ray_profile.encode.weights import resolve
from ray_profile.errors import EncoderError, StorageError
from ray_profile.store.models import copied, current, located, publish, verified, versions
from ray_profile.store.root import Listing, Root

SCRIPT = Path(__file__).with_name("published.py")
STEPS = ("files.before", "manifest.before", "pointer.before", "pointer.after")


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    """A root in which nothing was built, not even its facts; downloads go to a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Root.bare(str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3").fresh())


@pytest.fixture
def model(encoder: Path, tmp_path: Path) -> Path:
    return handmade.write_model(tmp_path / "model", encoder, Heads(handmade.sentiment(np.ones((3, 32)))))


def another(model: Path, to: Path) -> Path:
    """The same encoder with other heads."""
    shutil.copytree(model, to)
    (to / "heads.safetensors").write_bytes(Heads(handmade.sentiment(np.zeros((3, 32)))).to_bytes())
    return to


def written(root: Root) -> list[Listing]:
    return root.list("models")


def spoil(root: Root, path: str, body: bytes) -> None:
    """Change a file behind everybody's back."""
    with root.fs.open(root.path(path), "wb") as file:
        file.write(body)


def test_a_published_model_is_found_and_is_what_was_published(root: Root, model: Path) -> None:
    (model / "report").mkdir()
    (model / "report" / "混淆.png").write_bytes(b"a picture")
    digest = publish(root, "enc", model)
    address = located(root, "enc")
    assert address == f"{root.address}/models/enc/{digest}"
    assert current(root, "enc") == json.loads((model / "model.json").read_text())
    assert versions(root, "enc") == [digest]
    folder = resolve(address)
    for path in model.glob("*.*"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert verified(folder) == folder
    assert not Root.exists(root.address), "a model makes no root"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(files) == {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()}
    stored = {entry.path.removeprefix(f"models/enc/{digest}/") for entry in written(root)}
    assert stored == {*files, "manifest.json", "models/enc/current.json"}


def test_publishing_the_same_again_writes_nothing(root: Root, model: Path, tmp_path: Path) -> None:
    digest = publish(root, "enc", model)
    before = written(root)
    moved = shutil.copytree(model, tmp_path / "moved")
    assert publish(root, "enc", moved) == digest
    assert written(root) == before


def test_another_content_is_another_version_and_the_old_one_stays(root: Root, model: Path, tmp_path: Path) -> None:
    old, before = publish(root, "enc", model), located(root, "enc")
    new = publish(root, "enc", another(model, tmp_path / "other"))
    assert new != old
    assert located(root, "enc").endswith(new)
    assert sorted(versions(root, "enc")) == sorted([old, new])
    assert Heads.read(resolve(before)).sentiment.weights.sum() == 96  # type: ignore[union-attr]
    assert publish(root, "enc", model) == old  # and back
    assert located(root, "enc") == before
    assert len(versions(root, "enc")) == 2


@pytest.mark.parametrize("step", STEPS[:3])
def test_a_model_that_is_not_whole_is_seen_by_nobody(root: Root, model: Path, tmp_path: Path, step: str) -> None:
    def stop(at: str) -> None:
        if at == step:
            raise KeyboardInterrupt

    old = publish(root, "enc", model)
    other = another(model, tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        publish(root, "enc", other, stop)
    assert located(root, "enc").endswith(old)
    with pytest.raises(KeyboardInterrupt):
        publish(root, "first", other, stop)
    assert current(root, "first") is None
    with pytest.raises(EncoderError, match="it has enc"):
        located(root, "first")
    whole = ["pointer.before"] if step == "pointer.before" else []
    assert len(versions(root, "first")) == len(whole)
    for name in ("enc", "first"):  # the next one completes it
        digest = publish(root, name, other)
        assert located(root, name).endswith(digest)
        resolve(located(root, name))


def test_the_steps_are_those_that_are_tested(root: Root, model: Path) -> None:
    steps: list[str] = []
    publish(root, "enc", model, steps.append)
    assert tuple(steps) == STEPS


@pytest.mark.parametrize("when", ["copy1", "copy4", "manifest.before", "pointer.before"])
def test_a_publisher_that_is_killed_leaves_nothing_that_counts(root: Root, model: Path, when: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), root.address, str(model), when], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert current(root, "enc") is None
    left = written(root)
    assert left
    digest = publish(root, "enc", model)
    assert located(root, "enc").endswith(digest)
    assert set(left) <= set(written(root)), "what was there already is not written again"
    resolve(located(root, "enc"))


def test_a_file_that_was_changed_is_refused_and_mended_by_publishing_again(root: Root, model: Path) -> None:
    digest = publish(root, "enc", model)
    spoil(root, f"models/enc/{digest}/heads.safetensors", Heads().to_bytes())
    with pytest.raises(EncoderError, match=rf"{digest}: heads\.safetensors has SHA-256 \w+, and \w+ in the manifest"):
        resolve(located(root, "enc"))
    assert publish(root, "enc", model) == digest
    resolve(located(root, "enc"))


def test_a_file_that_is_gone_or_was_not_published_is_refused(root: Root, model: Path) -> None:
    digest = publish(root, "enc", model)
    spoil(root, f"models/enc/{digest}/added_tokens.json", b'{"x": 1}')
    with pytest.raises(EncoderError, match=r"added_tokens\.json is not in the manifest.*take it away"):
        resolve(located(root, "enc"))
    root.delete([f"models/enc/{digest}/added_tokens.json", f"models/enc/{digest}/model.safetensors"])
    with pytest.raises(EncoderError, match=r"model\.safetensors is gone, which the manifest names; restore it"):
        resolve(located(root, "enc"))


def test_an_address_never_gives_another_content(root: Root, model: Path, tmp_path: Path) -> None:
    """Not even one with a manifest that fits."""
    digest = publish(root, "enc", model)
    address = located(root, "enc")
    other = publish(root, "other", another(model, tmp_path / "other"))
    for name in ("heads.safetensors", "manifest.json"):
        spoil(root, f"models/enc/{digest}/{name}", root.fs.cat_file(root.path("models", "other", other, name)))
    with pytest.raises(EncoderError, match=rf"manifest\.json has digest {other}, not {digest}"):
        resolve(address)


def test_a_version_without_its_manifest_is_none(root: Root, model: Path) -> None:
    digest = publish(root, "enc", model)
    address = located(root, "enc")
    root.delete([f"models/enc/{digest}/manifest.json"])
    with pytest.raises(EncoderError, match=rf"current\.json names version {digest}, which has no manifest\.json"):
        located(root, "enc")
    with pytest.raises(EncoderError, match=r"manifest\.json is missing"):
        resolve(address)


@pytest.mark.parametrize("said", [[], {}, {"digest": 3}, {"digest": "../../elsewhere"}])
def test_a_pointer_that_names_nothing_says_so(tmp_path: Path, model: Path, said: object) -> None:
    root = Root.bare(str(tmp_path / "root"))
    publish(root, "enc", model)
    root.replace_json(said, "models", "enc", "current.json")
    with pytest.raises(EncoderError, match=r"current\.json holds .* names no version.*train the model again"):
        located(root, "enc")


def test_a_root_without_such_a_model_names_those_that_it_has(root: Root, model: Path) -> None:
    assert current(root, "enc") is None
    with pytest.raises(EncoderError, match=r"'root:enc': .* it has none\. .*`ray-profile train`.*models/NAME/DIGEST"):
        located(root, "enc")
    publish(root, "enc", model)
    publish(root, "b.2", model)
    root.create_json({"sha256": "0"}, "models", "sentiment-probe", "current.json")
    with pytest.raises(EncoderError, match=r"it has b\.2, enc\."):
        located(root, "encoder")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a b", "a%2f", "-x"])
def test_a_name_is_letters_digits_and_three_signs(tmp_path: Path, model: Path, name: str) -> None:
    root = Root.bare(str(tmp_path / "root"))
    for act in (lambda: publish(root, name, model), lambda: located(root, name), lambda: versions(root, name)):
        with pytest.raises(EncoderError, match=r"letters, digits, - _ \. only"):
            act()
    assert not (tmp_path / "root").exists()


def test_the_probes_name_is_taken(tmp_path: Path, model: Path) -> None:
    with pytest.raises(EncoderError, match=r"'sentiment-probe'.*choose another"):
        publish(Root.bare(str(tmp_path / "root")), "sentiment-probe", model)


@pytest.mark.parametrize("name", ["training_args.bin", "x/optimizer.pt", "a.pth", "a.PKL", "a.ckpt"])
def test_a_folder_that_holds_a_pickle_is_refused(tmp_path: Path, model: Path, name: str) -> None:
    (model / "x").mkdir()
    (model / name).write_bytes(b"")
    with pytest.raises(EncoderError, match=f"holds {name}.*pickle can run code"):
        publish(Root.bare(str(tmp_path / "root")), "enc", model)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("lost", "says"),
    [("model.safetensors", "no weights"), ("tokenizer.json", r"no tokenizer\.json"), ("model.json", r"no model\.json")],
)
def test_a_folder_that_no_build_could_use_is_refused(tmp_path: Path, model: Path, lost: str, says: str) -> None:
    """Heads are no weights, though they are safetensors."""
    (model / lost).unlink()
    with pytest.raises(EncoderError, match=says):
        publish(Root.bare(str(tmp_path / "root")), "enc", model)
    (model / "heads.safetensors").write_bytes(b"cut off")
    with pytest.raises(EncoderError):
        publish(Root.bare(str(tmp_path / "root")), "enc", model)
    assert not (tmp_path / "root").exists()


def test_a_name_of_the_root_is_no_place_by_itself() -> None:
    with pytest.raises(EncoderError, match=r"'root:enc' names a model of the root.*ROOT/models/enc/DIGEST"):
        resolve("root:enc")


def test_files_are_read_once_a_process(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root.bare(str(tmp_path / "root"))
    publish(root, "enc", model)
    resolve(located(root, "enc"))
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("a file was read again"))
    resolve(located(root, "enc"))


def test_a_download_is_verified_before_anybody_can_use_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = Root.bare(str(tmp_path / "root"))
    publish(root, "enc", model)
    store = fsspec.filesystem("memory")
    store.put(located(root, "enc"), "/copied/enc", recursive=True)
    store.pipe("/copied/enc/heads.safetensors", Heads().to_bytes())
    with pytest.raises(EncoderError, match=r"memory://copied/enc: heads\.safetensors has SHA-256"):
        resolve("memory://copied/enc")
    assert not list((tmp_path / "cache" / "ray_profile" / "models").iterdir())


def test_somebody_elses_manifest_is_none_of_our_business(encoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder, tmp_path / "theirs")
    for body in ('{"files": {"model.safetensors": "0"}}', "[]", "no json"):
        (folder / "manifest.json").write_text(body)
        assert resolve(str(folder)) == folder


def test_a_copy_replaces_what_differs_and_leaves_the_rest(root: Root, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name, body in (("a.json", "1"), ("deep/b.txt", "2"), (".hidden", "3")):
        (folder / name).write_text(body)
    copied(folder, root, ("training", "x"))
    before = {entry.path: entry for entry in root.list("training")}
    assert set(before) == {"training/x/a.json", "training/x/deep/b.txt"}
    (folder / "a.json").write_text("9")
    copied(folder, root, ("training", "x"))
    after = {entry.path: entry for entry in root.list("training")}
    assert root.fs.cat_file(root.path("training/x/a.json")) == b"9"
    assert after["training/x/deep/b.txt"] == before["training/x/deep/b.txt"]


def test_a_store_that_refuses_is_a_storage_error(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="permissions"):
        publish(Root.bare(str(tmp_path / "file" / "root")), "enc", model)

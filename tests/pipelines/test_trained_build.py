"""A build with a trained model: what its heads say of reviews is what profiles say; a name means one content a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import polars as pl
import pytest
import seaweedfs
import tiny
from equal import assert_equal_roots, profiles_of

from ray_profile.config import Config, Encoder, Source, load
from ray_profile.encode.heads import TagMatrix
from ray_profile.encode.taxonomy import Tag, Taxonomy
from ray_profile.encode.text import TextEncoder
from ray_profile.encode.trained import Heads
from ray_profile.encode.weights import model_digest, resolve
from ray_profile.errors import EncoderError, RootError
from ray_profile.pipelines.build import Summary, build
from ray_profile.pipelines.compact import compact
from ray_profile.pipelines.dry_run import dry_run
from ray_profile.pipelines.lookup import profile_of
from ray_profile.pipelines.run import listed
from ray_profile.pipelines.tables import items_table
from ray_profile.sources.simulate import Shop
from ray_profile.store.models import located, publish
from ray_profile.store.root import Root
from ray_profile.store.tables import Table, read_files
from ray_profile.store.waves import Writer

GLAD, CROSS = "lovely and wonderful, we are happy", "broken junk! zzz xx !!!"
TAXONOMY = Taxonomy((Tag("joy & such", "Joy"), Tag("anger", "Anger")))


def encoder_of(folder: Path, **settings: Any) -> TextEncoder:
    return TextEncoder.load(Encoder(model=str(folder), dtype="float32", **settings), "cpu")


def heads_of(encoder: Path, taxonomy: Taxonomy = TAXONOMY, threshold: float = 0.5) -> Heads:
    """Glad words are positive and the first tag, cross ones negative and the last; each as sure as the words are.

    A new tag, whose text is about as near to all of the tiny encoder's texts (cosine 1), has a logit of about 0 too.
    """
    loaded = encoder_of(encoder)
    glad, cross = loaded.encode(pl.Series([GLAD, CROSS])).vectors.astype(np.float32)
    (axis,) = handmade.unit(glad - cross)
    middle = float(axis @ (glad + cross) / 2)
    felt = handmade.sentiment(np.outer([-9, 0, 9], axis), np.array([9, 0, -9]) * middle)
    plain = TagMatrix.build(taxonomy, loaded).vectors
    lean = np.linspace(1, -1, len(taxonomy.tags))
    more = {"bias": -4 * lean * middle, "threshold": np.full(len(lean), threshold), "default_bias": -4.0}
    tags = handmade.tag_head([tag.id for tag in taxonomy.tags], np.outer(lean, axis) - plain, **more)
    return Heads(felt, None, tags)


def write_reviews(path: Path, rows: list[tuple[str, int | None, str]], first_day: int = 0) -> None:
    """A file of (user, stars, text), a minute apart."""
    start = 1_700_000_000_000 + first_day * 86_400_000
    lines = [
        {"user_id": user, "parent_asin": "i", "rating": stars, "timestamp": start + at * 60_000, "text": text}
        for at, (user, stars, text) in enumerate(rows)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))


#: Enough stars for a probe, which would say the same; and the words of those who gave none.
RATED = [(f"a{n}", stars, f"{text} {n}") for n in range(150) for stars, text in ((5, GLAD), (1, CROSS))]
SILENT = [(f"b{n}", None, f"{(CROSS, GLAD)[n % 2]} {n}") for n in range(20)]
BOTH = [("c", 1, GLAD), ("c", None, f"{GLAD} again")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days of reviews and a configuration that sees both."""
    folder = tmp_path_factory.mktemp("files")
    write_reviews(folder / "1.jsonl", [*RATED, *BOTH])
    write_reviews(folder / "2.jsonl", SILENT, 40)
    (folder / "c.toml").write_text(f'[sources.reviews]\nformat = "amazon-2023"\npaths = ["{folder}/*.jsonl"]\n')
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    return handmade.write_model(tmp_path_factory.mktemp("model") / "enc", encoder, heads_of(encoder), TAXONOMY)


def config_of(files: Path, root: object, *overrides: str) -> Config:
    mine = ("encoder.model=root:enc", "encoder.dtype=float32", *overrides)
    return load(files / "c.toml", [f"root={root}", *mine])


def run(config: Config, **options: Any) -> Summary:
    return build(config, local=True, clock=tiny.CLOCK, **options)


def waves_of(root: object) -> list[Mapping[str, Any]]:
    """The configurations of the committed waves, in order."""
    opened = Root.existing(str(root))
    return [past.wave.config for past in Writer(opened, Table(opened, "states")).past()]


@pytest.fixture(scope="module")
def trained(files: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a published model, and a build with it. Tests only read it."""
    root = tmp_path_factory.mktemp("trained") / "root"
    publish(Root.bare(str(root)), "enc", model)
    run(config_of(files, root))
    return root


def users(root: object, prefix: str) -> list[dict[str, Any]]:
    found = profiles_of(root).filter(pl.col("user_id").str.starts_with(prefix))
    return found.sort("user_id").to_dicts()


def test_how_a_review_without_stars_feels_is_what_the_model_says(trained: Path, encoder: Path) -> None:
    heads = heads_of(encoder)
    assert heads.sentiment is not None
    texts = {user: text for user, _, text in SILENT}
    found = users(trained, "b")
    assert len(found) == len(SILENT)
    vectors = encoder_of(encoder).encode(pl.Series([texts[each["user_id"]] for each in found])).vectors
    for each, shares in zip(found, heads.sentiment.predict(vectors), strict=True):
        felt = each["sentiment"]
        assert felt["source"] == "model"
        assert [felt[name] for name in ("negative", "neutral", "positive")] == pytest.approx(shares.tolist(), abs=2e-3)
        feeling = "positive" if GLAD in texts[each["user_id"]] else "negative"
        assert [(act["feeling"], act["snippet"]) for act in felt["evidence"]] == [(feeling, texts[each["user_id"]])]


def test_stars_remain_the_truth_and_no_probe_is_fitted(trained: Path) -> None:
    assert {each["sentiment"]["source"] for each in users(trained, "a")} == {"stars"}
    (both,) = users(trained, "c")
    assert both["sentiment"]["source"] == "mixed"
    assert 0.4 < both["sentiment"]["negative"] < 0.6  # one star for glad words, and glad words without a star
    assert not (trained / "models" / "sentiment-probe").exists()


def test_tags_of_reviews_are_the_models_with_its_probabilities(trained: Path, encoder: Path) -> None:
    """The taxonomy is the one that model.json keeps: the configuration names none."""
    heads, loaded = heads_of(encoder), encoder_of(encoder)
    assert heads.tags is not None
    texts = {user: text for user, _, text in SILENT}
    found = users(trained, "b")
    vectors = loaded.encode(pl.Series([texts[each["user_id"]] for each in found])).vectors
    wanted = heads.tags.matrix(TAXONOMY, loaded).tags_of(vectors)
    assert wanted.height == len(found)  # of two tags in one softmax, one has at least a half
    for each, (_, name, p) in zip(found, wanted.rows(), strict=True):
        (tag,) = each["tags"]
        assert (tag["tag"], tag["source"], tag["support"]) == (name, "model", 1)
        assert tag["score"] == pytest.approx(p, abs=2e-3)
        assert 0.5 <= tag["score"] <= 1
        assert [act["snippet"] for act in tag["evidence"]] == [texts[each["user_id"]]]
    assert set(wanted["tag"]) == {"joy & such", "anger"}


def test_a_taxonomy_file_goes_before_the_models_own(files: Path, model: Path, encoder: Path, tmp_path: Path) -> None:
    """Its new tag has no residual, and the default bias and threshold."""
    own = {"tags": [{"id": "anger", "name": "Anger"}, {"id": "new", "name": "Lovely"}]}
    text = "".join(f'[[tags]]\nid = "{tag["id"]}"\nname = "{tag["name"]}"\n' for tag in own["tags"])
    (tmp_path / "own.toml").write_text(text)
    publish(Root.bare(str(tmp_path / "root")), "enc", model)
    run(config_of(files, tmp_path / "root", f"taxonomy.path={tmp_path / 'own.toml'}"))
    heads, loaded = heads_of(encoder), encoder_of(encoder)
    assert heads.tags is not None
    texts = {user: text for user, _, text in SILENT}
    found = users(tmp_path / "root", "b")
    vectors = loaded.encode(pl.Series([texts[each["user_id"]] for each in found])).vectors
    wanted = heads.tags.matrix(Taxonomy.parse(own), loaded).tags_of(vectors)
    said = [(at, tag["tag"], tag["source"]) for at, each in enumerate(found) for tag in each["tags"]]
    assert sorted(said) == sorted((row, tag, "model") for row, tag, _ in wanted.rows())
    assert "anger" in set(wanted["tag"])


def test_titles_and_searches_are_tagged_as_by_a_plain_encoder(
    shop: Shop, built: Path, encoder: Path, tmp_path: Path
) -> None:
    """Only reviews are what the head has learnt from."""
    own = Taxonomy.load(str(shop.taxonomy))
    root = tmp_path / "root"
    heads = Heads(tags=heads_of(encoder, own, 0.9 / len(own.tags)).tags)
    publish(Root.bare(str(root)), "enc", handmade.write_model(tmp_path / "m", encoder, heads, own))
    run(tiny.config_of(shop, root, "encoder.model=root:enc"))

    def items(address: Path) -> list[Any]:
        table = items_table(Root.existing(str(address)))
        handle = table.open()
        assert handle is not None
        frame = pl.from_arrow(read_files(table, handle.files()))
        assert isinstance(frame, pl.DataFrame)
        return frame.sort("item_id")["tags"].to_list()

    assert items(root) == items(built)
    before, after = (profiles_of(address) for address in (built, root))
    sources = after.explode("tags").select(pl.col("tags").struct.field("source")).to_series()
    assert "model" in sources.to_list()
    told = after.explode("tags").select("user_id", pl.col("tags").struct.unnest())
    acts = told.filter(pl.col("source") == "model").explode("evidence")["evidence"].struct.field("kind")
    assert "review" in acts.to_list()
    silent = before.filter((pl.col("review_count") == 0) & (pl.col("tags").list.len() > 0))["user_id"]
    same = [frame.filter(pl.col("user_id").is_in(silent.to_list())).sort("user_id") for frame in (before, after)]
    names = [[[(t["tag"], t["source"], t["score"]) for t in tags] for tags in each["tags"].to_list()] for each in same]
    assert [sorted(tags) for tags in names[0]] == [sorted(tags) for tags in names[1]]


def test_without_a_taxonomy_file_nothing_is_tagged_by_resemblance(shop: Shop, encoder: Path, tmp_path: Path) -> None:
    """The shop named no words that a title or a search could resemble."""
    own = Taxonomy.load(str(shop.taxonomy))
    root = tmp_path / "root"
    heads = Heads(tags=heads_of(encoder, own, 0.9 / len(own.tags)).tags)
    publish(Root.bare(str(root)), "enc", handmade.write_model(tmp_path / "m", encoder, heads, own))
    config = tiny.config_of(shop, root, "encoder.model=root:enc")
    run(config.model_copy(update={"taxonomy": config.taxonomy.model_copy(update={"path": None})}))
    sources = profiles_of(root).explode("tags").select(pl.col("tags").struct.field("source")).drop_nulls().to_series()
    assert set(sources) == {"catalogue", "model"}


def test_a_model_without_heads_builds_what_its_encoder_builds(
    shop: Shop, built: Path, encoder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    publish(Root.bare(str(root)), "enc", handmade.write_model(tmp_path / "m", encoder, None))
    run(tiny.config_of(shop, root, "encoder.model=root:enc"))
    assert_equal_roots(root, built, tiny.WIDTH)


def test_on_s3_it_is_the_same(
    s3: seaweedfs.S3Server, files: Path, model: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = s3.fresh()
    digest = publish(Root.bare(root), "enc", model)
    run(config_of(files, root))
    assert_equal_roots(root, trained, tiny.WIDTH)
    assert {wave["encoder"]["model"] for wave in waves_of(root)} == {f"{root}/models/enc/{digest}"}
    assert run(config_of(files, root)).waves == 0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_through_ray_it_is_the_same(files: Path, model: Path, trained: Path, tmp_path: Path) -> None:
    publish(Root.bare(str(tmp_path / "root")), "enc", model)
    build(config_of(files, tmp_path / "root"), clock=tiny.CLOCK)
    assert_equal_roots(tmp_path / "root", trained, tiny.WIDTH)


def test_a_name_is_looked_up_once_a_run_and_a_root_keeps_its_encoder(
    files: Path, model: Path, encoder: Path, tmp_path: Path
) -> None:
    mine = shutil.copytree(files, tmp_path / "files")
    (mine / "c.toml").write_text((files / "c.toml").read_text().replace(str(files), str(mine)))
    root = Root.bare(str(tmp_path / "root"))
    publish(root, "enc", model)
    old = located(root, "enc")
    run(config_of(mine, root.address))
    assert [wave["encoder"]["model"] for wave in waves_of(root.address)] == [old]
    heads = heads_of(encoder)
    assert heads.sentiment is not None
    later = Heads(handmade.sentiment(-heads.sentiment.weights, -heads.sentiment.bias), None, heads.tags)
    publish(root, "enc", handmade.write_model(tmp_path / "later", encoder, later, TAXONOMY))
    new = located(root, "enc")
    assert new != old
    write_reviews(mine / "3.jsonl", [("d", None, GLAD)], 50)
    with pytest.raises(RootError, match="the encoder has changed since wave 1") as caught:
        run(config_of(mine, root.address))
    assert f"encoder.model = {old!r}" in str(caught.value)
    assert f"build into a new root with encoder.model = {new!r}" in str(caught.value)
    assert run(config_of(mine, root.address, f"encoder.model={old}")).waves == 1
    assert users(root.address, "d")[0]["sentiment"]["positive"] > 0.5
    run(config_of(mine, tmp_path / "fresh", f"encoder.model={new}"))
    assert users(tmp_path / "fresh", "d")[0]["sentiment"]["positive"] < 0.5


def test_settings_come_from_the_model_and_must_not_contradict_it(files: Path, encoder: Path, tmp_path: Path) -> None:
    trained = {"prefix": "query: ", "pooling": "cls", "max_length": 64}
    described = {"encoder": trained}
    folder = handmade.write_model(tmp_path / "m", encoder, heads_of(encoder), TAXONOMY, described)
    publish(Root.bare(str(tmp_path / "root")), "enc", folder)
    run(config_of(files, tmp_path / "root"))
    digest = model_digest(folder, Encoder(**trained))  # type: ignore[arg-type]
    assert profiles_of(tmp_path / "root")["encoder"].unique().to_list() == [digest]
    assert waves_of(tmp_path / "root")[0]["encoder"]["prefix"] == "query: "
    wrong = config_of(files, tmp_path / "root", "encoder.pooling=mean")
    says = r"encoder.pooling = 'mean', but '.*/models/enc/\w{16}' was trained with 'cls'"
    for act in (run, lambda config: profile_of(config, "c", "2023-12-01"), lambda config: compact(config, local=True)):
        with pytest.raises(EncoderError, match=says):
            act(wrong)
    (problem,) = dry_run(wrong, tiny.CLOCK).problems
    assert "encoder.pooling = 'mean'" in problem


def test_every_command_knows_the_name(files: Path, model: Path, trained: Path, tmp_path: Path) -> None:
    planned = dry_run(config_of(files, trained), tiny.CLOCK)
    assert planned.problems == ()
    assert planned.files_folded == 2
    root = tmp_path / "root"
    publish(Root.bare(str(root)), "enc", model)
    first = dry_run(config_of(files, root), tiny.CLOCK)
    assert (first.problems, first.root_exists) == ((), False)
    assert first.estimate.tokens > 0
    shutil.rmtree(root)
    shutil.copytree(trained, root)
    config = config_of(files, root, f"encoder.model={located(Root.bare(str(root)), 'enc')}")
    assert profile_of(config, "c", "2023-12-01")["sentiment"]["source"] == "mixed"
    assert profile_of(config_of(files, root), "c", "2023-12-01")["sentiment"]["source"] == "mixed"
    assert compact(config_of(files, root), local=True, max_files=0).buckets > 0
    assert run(config_of(files, root)).waves == 0
    assert_equal_roots(root, trained, tiny.WIDTH)


def test_a_root_without_the_model_says_what_it_has_and_stays_untouched(
    files: Path, model: Path, tmp_path: Path
) -> None:
    config = config_of(files, tmp_path / "root")
    with pytest.raises(EncoderError, match=r"'root:enc'.* it has none\. .*`ray-profile train`"):
        run(config)
    (problem,) = dry_run(config, tiny.CLOCK).problems
    assert "ray-profile train" in problem
    assert not (tmp_path / "root").exists()
    publish(Root.bare(str(tmp_path / "root")), "other", model)
    with pytest.raises(EncoderError, match="it has other"):
        run(config)
    assert not Root.exists(str(tmp_path / "root"))


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("model.safetensors", b"cut off", r"model\.safetensors has SHA-256"),
        ("heads.safetensors", Heads().to_bytes(), r"heads\.safetensors has SHA-256"),
        ("model.json", b"{}", r"model\.json has SHA-256"),
        ("model.safetensors", None, r"model\.safetensors is gone"),
        ("manifest.json", None, r"has no manifest\.json"),
    ],
)
def test_a_model_that_is_not_what_was_published_builds_nothing(
    files: Path, model: Path, tmp_path: Path, name: str, body: bytes | None, says: str
) -> None:
    root = Root.bare(str(tmp_path / "root"))
    publish(root, "enc", model)
    path = Path(located(root, "enc")) / name
    path.unlink() if body is None else path.write_bytes(body)
    with pytest.raises(EncoderError, match=says):
        run(config_of(files, root.address))
    assert not Root.exists(root.address)


def test_trained_tags_without_a_taxonomy_are_refused_before_anything_is_written(
    files: Path, encoder: Path, tmp_path: Path
) -> None:
    """They would vanish; a folder that was never published can be so."""
    folder = handmade.write_model(tmp_path / "m", encoder, heads_of(encoder))
    with pytest.raises(EncoderError, match=r"taxonomy.*Set taxonomy\.path"):
        run(config_of(files, tmp_path / "root", f"encoder.model={folder}"))
    assert not Root.exists(str(tmp_path / "root"))


def test_what_training_writes_under_a_root_is_no_file_of_a_source_around_it(model: Path, tmp_path: Path) -> None:
    root = Root.bare(str(tmp_path / "root"))
    publish(root, "enc", model)
    for path in (("training", "0" * 16, "part.parquet"), ("training", "runs", "enc-1", "x.json")):
        root.create_json({}, *path)
    (tmp_path / "root" / "models" / "mine.csv").touch()
    around = Source(format="columns", paths=(f"{tmp_path}/**/*",))
    found = [file.path for file in listed(Config(root=root.address, sources={"s": around}), "s")]
    assert found == [str(tmp_path / "root" / "models" / "mine.csv")]
    assert resolve(located(root, "enc")).is_dir()

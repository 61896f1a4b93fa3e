"""The loop with both engines: it learns, goes on exactly where it stopped, and says when it diverges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.distributed as dist

from ray_profile.config import Encoder
from ray_profile.encode import automodel
from ray_profile.encode.taxonomy import Tag, Taxonomy
from ray_profile.encode.text import pool
from ray_profile.encode.tokens import Tokenizer
from ray_profile.train import engines, loop, start
from ray_profile.train.batch import Batch, collate, of_piece
from ray_profile.train.batch import classes as classes_of
from ray_profile.train.examples import EXAMPLES
from ray_profile.train.export import write_encoder
from ray_profile.train.loop import Hooks, Progress
from ray_profile.train.model import Settings, Trainee
from ray_profile.train.plan import Drawing, Plan, batches
from ray_profile.train.shards import tokenised
from ray_profile.train_config import Train

WORDS = (
    ("awful broken useless", "refund asap"),
    ("okay average", "nothing special"),
    ("great lovely", "will buy again"),
)
TAXONOMY = Taxonomy((Tag("tea", "tea"), Tag("tents", "tents")))


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A torch.distributed world of one, with what a launcher sets."""
    meet = tmp_path_factory.mktemp("meet") / "file"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@dataclass
class Shop:
    """Three shards of tokenised reviews whose words tell the label."""

    folder: Path
    shards: list[pl.DataFrame]
    drawing: Drawing = field(default_factory=lambda: Drawing(0, 1024, (1.0, 1.0, 1.0, 1.0)))

    def plan(self, epochs: int) -> Plan:
        return Plan(0, tuple(tuple(len(self._batches(shard, epoch)) for shard in range(3)) for epoch in range(epochs)))

    def _batches(self, shard: int, epoch: int) -> list[np.ndarray]:
        rows = self.shards[shard]
        lengths = rows["length"].to_numpy(), rows["about_length"].to_numpy()
        return batches(classes_of(rows, "sentiment"), *lengths, self.drawing, epoch, shard)

    def stream(self, plan: Plan, progress: Progress, epochs: int) -> Iterator[Batch]:
        for epoch, spans in loop.shares(plan, progress, epochs, 1)[0]:
            for piece in plan.pieces(epoch, spans):
                read = lambda shard, columns: self.shards[shard].select(columns)  # noqa: E731
                made = of_piece(piece, read, self.drawing, partial(classes_of, by="sentiment"))
                for at, rows in enumerate(made):
                    yield collate(rows, 2, epoch, piece.number + at)


@pytest.fixture(scope="module")
def small(encoder: Path) -> Shop:
    random = np.random.default_rng(0)
    label = random.integers(0, 3, 180)
    tag = random.integers(0, 2, 180)
    rows = pl.DataFrame(
        {
            "id": [f"r{at}" for at in range(180)],
            "user_id": [f"u{at % 40}" for at in range(180)],
            "item_id": [f"i{at % 9}" for at in range(180)],
            "split": "train",
            "text": [
                f"{WORDS[a][random.integers(2)]} {('green tea leaves', 'dry tent')[b]}"
                for a, b in zip(label, tag, strict=True)
            ],
            "sentiment": label,
            "tags": [[int(b)] for b in tag],
            "about": [f"item number {at % 9}" for at in range(180)],
        },
        schema_overrides=EXAMPLES,
    )
    reader = Tokenizer.load(Encoder(model=str(encoder), max_length=64))
    whole = tokenised(rows, reader, reader)
    return Shop(encoder, [whole[at::3] for at in range(3)])


def settings(**more: object) -> Train:
    told = {"epochs": 3, "learning_rate": 1e-3, "head_learning_rate": 1e-2, "dropout": 0.0, "dtype": "float32"}
    return Train.model_validate({**told, "evaluations_per_epoch": 1, "max_length": 64, **more})


def engine_of(small: Shop, told: Train) -> engines.Engine:
    torch.manual_seed(0)
    texts = start.tag_texts(TAXONOMY, Tokenizer.load(Encoder(model=str(small.folder), max_length=64)))
    rows = dict.fromkeys(("sentiment", "tags", "contrast"), 20.0) | {"mlm": 100.0}
    made = Settings(told.objectives, rows, "mean", True, 0.0, mask_token=1, special_tokens=(0, 1, 2, 3))
    return engines.make(Trainee(start.encoder(small.folder, told), made, texts), told, torch.device("cpu"))


@dataclass
class Run:
    """One attempt, which keeps a checkpoint whenever the loop says so and dies after `stop` steps."""

    folder: Path
    engine: engines.Engine
    stop: int = 10**9
    used: list[tuple[int, int, tuple[str, ...]]] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)

    def hooks(self) -> Hooks:
        return Hooks(lambda: {"score": 0.5}, self._report, self._trained)

    def _report(self, _: object, progress: Progress) -> None:
        folder = self.folder / f"{progress.step}"
        folder.mkdir(parents=True)
        self.engine.save(folder)
        progress.write(folder)
        self.kept.append(folder)

    def _trained(self, step: int, used: Sequence[Batch]) -> None:
        self.used += [(step, batch.epoch, batch.names) for batch in used if batch.rows]
        if step >= self.stop:
            raise KeyboardInterrupt


def run(small: Shop, told: Train, folder: Path, stop: int = 10**9, begin: Path | None = None) -> tuple[Run, Progress]:
    made = Run(folder, engine_of(small, told), stop)
    plan = small.plan(told.epochs)
    progress = Progress.start(plan)
    if begin is not None:
        made.engine.load(begin)
        progress = Progress.read(begin)
    stream = small.stream(plan, replace(progress), told.epochs)
    try:
        progress = loop.train(made.engine, told, plan, progress, stream, 2, made.hooks())
    except KeyboardInterrupt:
        assert stop < 10**9
    return made, progress


ENGINES = ["ddp", "deepspeed"]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_losses_fall_and_every_row_is_trained_on_once_an_epoch(small: Shop, tmp_path: Path, engine: str) -> None:
    made, progress = run(small, settings(engine=engine, patience=99), tmp_path)
    assert progress.ended == "finished"
    points = [point for point in progress.curves if "loss" in point]
    assert points[-1]["loss"] < 0.8 * points[0]["loss"]
    for epoch in range(3):
        seen = sorted(name for _, at, names in made.used for name in names if at == epoch)
        assert seen == sorted(name for shard in small.shards for name in shard["id"])


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupted_run_ends_as_an_unbroken_one(small: Shop, tmp_path: Path, engine: str) -> None:
    told = settings(engine=engine, checkpoint_steps=4, patience=99)
    whole, _ = run(small, told, tmp_path / "whole")
    broken, _ = run(small, told, tmp_path / "broken", stop=10)
    last = broken.kept[1]  # in the middle of an epoch
    assert last.name == "8"
    resumed, progress = run(small, told, tmp_path / "resumed", begin=last)
    assert progress.ended == "finished"
    assert [each for each in broken.used if each[0] <= 8] + resumed.used == whole.used
    expected, found = whole.engine.weights(), resumed.engine.weights()
    assert expected is not None
    assert found is not None
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_is_no_number_stops_and_names_the_step(small: Shop, tmp_path: Path, engine: str) -> None:
    told = settings(engine=engine, checkpoint_steps=4, learning_rate=1e30, warmup_share=0.0, gradient_clip=1e30)
    made, progress = run(small, told, tmp_path)
    assert progress.ended == "diverged"
    assert 1 < progress.step <= 10
    assert all(int(folder.name) < progress.step for folder in made.kept)


def test_patience_ends_a_run_that_gets_no_better(small: Shop, tmp_path: Path) -> None:
    _, progress = run(small, settings(engine="ddp", patience=2, evaluations_per_epoch=4), tmp_path)
    assert progress.ended == "stopped"
    assert progress.best_step < progress.step < 3 * small.plan(1).total(0)


def test_masked_words_alone_are_an_objective(small: Shop, tmp_path: Path) -> None:
    _, progress = run(small, settings(engine="ddp", objectives={"mlm": 1.0}, epochs=4, patience=99), tmp_path)
    points = [point["loss_mlm"] for point in progress.curves if "loss_mlm" in point]
    assert points[-1] < points[0]


def test_learning_rises_then_falls_to_nothing() -> None:
    factors = [loop.learning_factor(share / 100, 0.1) for share in range(101)]
    assert factors[0] == 0
    assert factors[10] == 1
    assert factors[100] == 0
    assert factors[10:] == sorted(factors[10:], reverse=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_few_parameters_are_trained_and_merged_into_the_weights(
    small: Shop, tmp_path: Path, engine: str, method: str
) -> None:
    told = settings(engine=engine, peft={"method": method, "dropout": 0.0}, patience=99, learning_rate=1e-2)
    made, progress = run(small, told, tmp_path / "run")
    points = [point for point in progress.curves if "loss" in point]
    assert points[-1]["loss"] < points[0]["loss"]
    weights = made.engine.weights()
    assert weights is not None
    write_encoder(weights, small.folder, told, Encoder(max_length=64), tmp_path / "model")
    merged, plain = (automodel.load(folder)[0] for folder in (tmp_path / "model", small.folder))
    assert merged.state_dict().keys() == plain.state_dict().keys()
    changed = [name for name, value in plain.state_dict().items() if not torch.equal(value, merged.state_dict()[name])]
    assert changed
    assert all("attention" in name or "dense" in name for name in changed)
    batch = collate(small.shards[0], 2)
    with torch.no_grad():
        here = pool(merged(input_ids=batch.ids_BL, attention_mask=batch.mask_BL.long()).last_hidden_state,
                    batch.mask_BL.sum(1), "mean")  # fmt: skip
        there = trainee_of(made.engine).eval().embed(batch.ids_BL, batch.mask_BL)
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-3)


def trainee_of(engine: engines.Engine) -> Trainee:
    found = engine._trainee  # type: ignore[attr-defined]
    assert isinstance(found, Trainee)
    return found

"""Several workers together do what one process does with all their batches, and go on from each other's checkpoints.

Gradients are clipped to a norm at which AdamW's epsilon is felt, so that clipping otherwise would show in the weights
(its steps forget the gradients' scale), and an element without any true gradient stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from train_world import TAXONOMY, Arrays, Found, Plain, World, looped, micro_batches, refused, stepped, trainee_of

from ray_profile.config import Encoder
from ray_profile.encode import automodel
from ray_profile.encode.text import pool
from ray_profile.train import loop
from ray_profile.train.batch import collate
from ray_profile.train.export import write_encoder
from ray_profile.train.plan import Plan
from ray_profile.train_config import Train

pytestmark = pytest.mark.slow

CLIP = 1e-5
#: Far more than floats differ by when they are summed in another order, far less than a step moves a weight.
CLOSE = {"atol": 2e-6, "rtol": 1e-5}
STEPS = ((0, 1), (2, 3), (4,))  # the last one has fewer batches than are accumulated
MORE = ((5, 0), (1, 2))

ENGINES = ("ddp", "zero0", "zero1", "zero2", "zero3")


def settings(engine: str, **more: object) -> Train:
    """ZeRO 3 with a part of even the smallest parameter on each worker, and several flat tensors to a group."""
    told: dict[str, object] = {"learning_rate": 1e-3, "head_learning_rate": 1e-2, "dropout": 0.0, "dtype": "float32"}
    told |= {"gradient_accumulation": 2, "gradient_clip": CLIP, "max_length": 64, "label_smoothing": 0.0}
    if engine == "ddp":
        told["engine"] = "ddp"
    else:
        zero = {"stage3_param_persistence_threshold": 0, "sub_group_size": 8_000} if engine == "zero3" else {}
        told["deepspeed"] = {"zero_stage": int(engine[-1]), "zero_optimization": zero}
    return Train.model_validate({**told, **more})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], World]]:
    """Workers, as many as one asks for, that live until the last test."""
    made: dict[int, World] = {}

    def of(size: int) -> World:
        if size not in made or not made[size].alive:
            made[size] = World(size, tmp_path_factory.mktemp(f"world{size}"))
        return made[size]

    yield of
    for each in made.values():
        each.close()


def close(found: Arrays | None, expected: Arrays, **tolerance: float) -> None:
    assert found is not None
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **(tolerance or CLOSE))


def apart(some: Arrays, others: Arrays) -> float:
    """The mean distance of weights."""
    return float(np.mean([np.abs(value - others[name]).mean() for name, value in some.items()]))


@pytest.mark.parametrize(
    ("engine", "checkpointing"),
    [*((engine, False) for engine in ENGINES), ("ddp", True), ("zero1", True), ("zero3", True)],
)
def test_two_workers_move_the_weights_as_one_process_does_with_all_rows(
    world: Callable[[int], World], encoder: Path, engine: str, checkpointing: bool
) -> None:
    plain = Plain(encoder, settings(engine))
    before = plain.weights
    for step in STEPS:
        plain.step(step)
    first, second = world(2).do(stepped, encoder, settings(engine, activation_checkpointing=checkpointing), STEPS)
    assert second.weights is None
    close(first.weights, plain.weights)
    assert apart(plain.weights, before) > 100 * CLOSE["atol"]
    # Norms are those before clipping, which is felt everywhere.
    np.testing.assert_allclose(first.norms, plain.norms, rtol=1e-3)
    np.testing.assert_allclose(second.norms, plain.norms, rtol=1e-3)
    assert min(plain.norms) > 1000 * CLIP
    for found in (first, second):
        for name in ("sentiment", "tags"):
            np.testing.assert_allclose(found.scores[name], plain.scores[name], atol=1e-4)


def test_another_clip_would_show_in_the_weights(encoder: Path) -> None:
    found = []
    for clip in (CLIP, 2 * CLIP):
        plain = Plain(encoder, settings("ddp", gradient_clip=clip))
        for step in STEPS:
            plain.step(step)
        found.append(plain.weights)
    assert apart(*found) > 10 * CLOSE["atol"]


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_with_fewer_batches_than_others_and_short_steps_lose_no_gradient(
    world: Callable[[int], World], encoder: Path, engine: str
) -> None:
    told = settings(engine, epochs=2, objectives={"sentiment": 1.0, "tags": 1.0}, patience=99)
    plan = Plan(0, ((5,), (5,)))  # the workers have two and three of an epoch's batches, and take two in a step
    plain = Plain(encoder, told)
    for done, step in ((4, (0, 1, 2, 3)), (5, (4,)), (9, (0, 1, 2, 3)), (10, (4,))):
        plain.step(step, loop.learning_factor(done / 10, told.warmup_share), parts=2 * told.gradient_accumulation)
    (weights, progress), (_, other) = world(2).do(looped, encoder, told, plan)
    assert progress.ended == other.ended == "finished"
    assert progress.step == other.step == 4
    assert progress.seen == 10 * 12
    close(weights, plain.weights)


@pytest.mark.parametrize("engine", ENGINES)
def test_any_number_of_workers_goes_on_from_a_checkpoint_as_if_nothing_had_happened(
    world: Callable[[int], World], encoder: Path, tmp_path: Path, engine: str
) -> None:
    told = settings(engine)
    kept, *_ = world(2).do(stepped, encoder, told, STEPS, None, _made(tmp_path))
    plain = Plain(encoder, told)
    for step in (*STEPS, *MORE):
        plain.step(step)
    for size in (1, 2, 3):  # the third of three has none of the heads' seven biases where ZeRO shares them out
        found: Found = world(size).do(stepped, encoder, told, MORE, tmp_path)[0]
        assert found.loaded is not None
        for name, value in kept.weights.items():
            np.testing.assert_array_equal(found.loaded[name], value, err_msg=name)
        close(found.weights, plain.weights)


def test_a_step_without_the_saved_moments_would_show_in_the_weights(encoder: Path) -> None:
    ends = []
    for fresh in (False, True):
        plain = Plain(encoder, settings("ddp"))
        for step in STEPS:
            plain.step(step)
        if fresh:
            plain.fresh_optimizer()
        for step in MORE:
            plain.step(step)
        ends.append(plain.weights)
    assert apart(*ends) > 50 * CLOSE["atol"]


@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_keeps_the_float32_weights_and_the_moments_in_its_checkpoints(
    world: Callable[[int], World], encoder: Path, tmp_path: Path, engine: str
) -> None:
    told = settings(engine, dtype="bf16")
    kept, *_ = world(2).do(stepped, encoder, told, STEPS, None, _made(tmp_path / "two"))
    unbroken: Found = world(2).do(stepped, encoder, told, (*STEPS, *MORE))[0]
    assert unbroken.weights is not None
    for size in (1, 3):
        again = _made(tmp_path / f"{size}")
        found: Found = world(size).do(stepped, encoder, told, (), tmp_path / "two", again)[0]
        close(found.weights, kept.weights, atol=0, rtol=0)
        same: Found = world(2).do(stepped, encoder, told, MORE, again)[0]
        close(same.weights, unbroken.weights, atol=0, rtol=0)  # back with as many workers: not a bit is lost


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_lora_goes_on_from_a_checkpoint_and_its_merged_weights_say_the_same(
    world: Callable[[int], World], encoder: Path, tmp_path: Path, engine: str
) -> None:
    told = settings(engine, peft={"method": "lora", "dropout": 0.0}, learning_rate=1e-2)
    world(2).do(stepped, encoder, told, STEPS, None, _made(tmp_path / "kept"))
    plain = Plain(encoder, told)
    before = plain.weights
    for step in (*STEPS, *MORE):
        plain.step(step)
    found: Found = world(3).do(stepped, encoder, told, MORE, tmp_path / "kept")[0]
    close(found.weights, plain.weights, atol=2e-5, rtol=1e-4)  # ten times the learning rate
    assert found.weights is not None
    moved = {name for name, value in found.weights.items() if not np.array_equal(value, before[name])}
    assert any("lora_A" in name for name in moved)
    assert any("lora_B" in name for name in moved)
    assert not any("base_layer" in name for name in moved)

    weights = {name: torch.from_numpy(value) for name, value in found.weights.items()}
    write_encoder(weights, encoder, told, Encoder(max_length=64), tmp_path / "model")
    merged, _ = automodel.load(tmp_path / "model")
    unmerged = trainee_of(encoder, told, 1).eval()
    unmerged.load_state_dict(weights)
    batch = collate(micro_batches(encoder)[0], len(TAXONOMY.tags))
    with torch.no_grad():
        hidden = merged(input_ids=batch.ids_BL, attention_mask=batch.mask_BL.long()).last_hidden_state
        expected = unmerged.embed(batch.ids_BL, batch.mask_BL)
        torch.testing.assert_close(pool(hidden, batch.mask_BL.sum(1), "mean"), expected, atol=1e-5, rtol=1e-4)
        untrained, _ = automodel.load(encoder)
        base = untrained(input_ids=batch.ids_BL, attention_mask=batch.mask_BL.long()).last_hidden_state
    assert (pool(base, batch.mask_BL.sum(1), "mean") - expected).abs().max() > 1e-3


def test_masked_words_are_learnt_alike_where_each_worker_has_a_part_of_the_embeddings(
    world: Callable[[int], World], encoder: Path
) -> None:
    found = [
        world(2).do(stepped, encoder, settings(engine, objectives={"mlm": 1.0}), STEPS)[0].weights
        for engine in ("ddp", "zero3")
    ]
    close(found[1], found[0])


def test_a_checkpoint_that_lacks_a_workers_part_is_refused(
    world: Callable[[int], World], encoder: Path, tmp_path: Path
) -> None:
    told = settings("zero2")
    world(2).do(stepped, encoder, told, STEPS, None, _made(tmp_path / "kept"))
    (tmp_path / "kept" / "part-1-of-2.safetensors").unlink()
    for said in world(3).do(refused, encoder, told, tmp_path / "kept"):  # all of them, also who needs nothing of it
        assert "1 of the 2 files" in said
        assert "delete the run's folder" in said
    (said,) = world(1).do(refused, encoder, told, tmp_path)
    assert "0 of the 1 files" in said


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder

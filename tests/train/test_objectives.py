"""The losses, against their formulas; and what they leave out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ray_profile.train.objectives import (
    IGNORED,
    contrast_logits,
    contrast_loss,
    gathered,
    masked,
    sentiment_loss,
    tag_loss,
)

NAN = math.nan


def test_sentiment_leaves_out_rows_without_a_label() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [9.0, 9.0, 9.0]], requires_grad=True)
    loss = sentiment_loss(logits, torch.tensor([0, -1]), 0.0)
    assert loss.item() == pytest.approx(-torch.log_softmax(logits[0], 0)[0].item())
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[1].abs().sum() == 0


def test_sentiment_of_no_labels_is_nothing() -> None:
    assert sentiment_loss(torch.ones(2, 3), torch.tensor([-1, -1]), 0.1).item() == 0


@pytest.mark.parametrize("exclusive", [True, False])
def test_untagged_rows_are_no_negatives(exclusive: bool) -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    tag_loss(logits, torch.tensor([[0.0, 1.0, 0.0], [NAN, NAN, NAN]]), exclusive, 0.1).backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().sum() > 0
    assert logits.grad[1].abs().sum() == 0


def test_tags_by_softmax_share_a_row_of_two_tags() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    logs = torch.log_softmax(logits[0], 0)
    loss = tag_loss(logits, torch.tensor([[1.0, 0.0, 1.0]]), True, 0.0)
    assert loss.item() == pytest.approx(-(logs[0] + logs[2]).item() / 2)


def test_tags_by_sigmoid_judge_each_tag() -> None:
    logits = torch.tensor([[1.0, -2.0]])
    wanted = -math.log(1 / (1 + math.exp(-1))) - math.log(1 - 1 / (1 + math.exp(2)))
    assert tag_loss(logits, torch.tensor([[1.0, 0.0]]), False, 0.0).item() == pytest.approx(wanted)


def test_the_same_item_and_nearly_the_same_title_are_no_negatives() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
    item, title = torch.tensor([1, 1, 2, 3]), torch.tensor([7, 7, 8, 8])
    scores = contrast_logits(vectors, vectors, item, item, title, title, 0)
    hidden = torch.isinf(scores)
    assert hidden.nonzero().tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]
    assert torch.isfinite(contrast_loss(scores, 0))


def test_contrast_finds_its_own_item_behind_those_of_other_workers() -> None:
    reviews = torch.eye(2)
    items = torch.cat([torch.zeros(3, 2), torch.eye(2)])
    key_B, key_A = torch.tensor([10, 11]), torch.tensor([1, 2, 3, 10, 11])
    scores = contrast_logits(reviews, items, key_B, key_A, key_B, key_A, 3)
    assert scores.argmax(1).tolist() == [3, 4]
    assert contrast_loss(scores, 3) < contrast_loss(scores.flip(1), 3)


def test_hidden_tokens_are_a_share_and_never_special_ones() -> None:
    torch.manual_seed(0)
    ids = torch.randint(10, 1000, (200, 100))
    may = torch.ones_like(ids, dtype=torch.bool)
    may[:, 0] = False
    hidden, labels = masked(ids, may, 3, 1000)
    chosen = labels != IGNORED
    assert not chosen[:, 0].any()
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (hidden[chosen] == 3).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (hidden[chosen] == ids[chosen]).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(hidden[~chosen], ids[~chosen])


def _gather(rank: int, port_file: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    mine = torch.arange(1.0, 3.0 + rank).reshape(-1, 1).requires_grad_()  # two rows here, three there
    whole, first = gathered(mine)
    weights = torch.arange(1.0, len(whole) + 1).reshape(-1, 1) * (rank + 1)
    (whole * weights).sum().backward()
    torch.save((whole.detach(), first, mine.grad), f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_gathered_rows_carry_the_gradients_of_all_workers(tmp_path: Path) -> None:
    mp.spawn(_gather, (str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    (whole, first, grad), (same, second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(whole, same)
    assert whole.flatten().tolist() == [1, 2, 1, 2, 3]
    assert (first, second) == (0, 2)
    assert grad.flatten().tolist() == [3, 6]  # 1 and 2 times (1 + 2)
    assert other.flatten().tolist() == [9, 12, 15]

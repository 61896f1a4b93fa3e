"""What training minimises: four losses, each a sum over the rows that carry its label.

A sum, for batches are filled by tokens and hold few long texts or many short ones: whoever divides it by the rows of an
average batch weighs every row alike.

Axes: B rows of a batch, A rows of all workers' batches, C classes, T tags, D width, L length, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn import functional

CONTRAST_SCALE = 20.0  # of cosines, as in sentence-transformers' MultipleNegativesRankingLoss
MASKED_SHARE = 0.15  # Devlin et al., 2019
IGNORED = -100


def sentiment_loss(logits_BC: torch.Tensor, labels_B: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy of the rows with a label (>= 0), the target smoothed towards all classes alike; a scalar."""
    labels = torch.where(labels_B >= 0, labels_B, IGNORED)
    return functional.cross_entropy(
        logits_BC.float(), labels, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing
    )


def tag_loss(logits_BT: torch.Tensor, labels_BT: torch.Tensor, exclusive: bool, smoothing: float) -> torch.Tensor:
    """Alignment with the tags, y = softmax(s^T A), of the rows that somebody tagged (no NaN); a scalar.

    `exclusive` (every row has one tag): cross-entropy of the softmax. Else binary cross-entropy of each tag, summed.
    """
    known_B = ~labels_BT.isnan().any(1) & (labels_BT.sum(1) > 0 if exclusive else True)
    logits, labels = logits_BT.float(), labels_BT.nan_to_num()
    if exclusive:
        target = labels / labels.sum(1, keepdim=True).clamp(min=1)
        target = target * (1 - smoothing) + smoothing / labels.shape[1]
        losses_B = -(target * logits.log_softmax(1)).sum(1)
    else:
        target = labels * (1 - smoothing) + smoothing / 2
        losses_B = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
    return (losses_B * known_B).sum()


def contrast_logits(
    reviews_BD: torch.Tensor,
    items_AD: torch.Tensor,
    item_B: torch.Tensor,
    item_A: torch.Tensor,
    title_B: torch.Tensor,
    title_A: torch.Tensor,
    first: int,
) -> torch.Tensor:
    """Scores (B, A) of each review with every item, its own at column `first` + its row.

    Another row's item counts as no negative where it is the same item or has nearly the same title: minus infinity.
    """
    scores = CONTRAST_SCALE * reviews_BD @ items_AD.T
    alike = (item_B[:, None] == item_A) | (title_B[:, None] == title_A)
    own = torch.arange(len(scores), device=scores.device)
    alike[own, own + first] = False
    return scores.masked_fill(alike, -torch.inf)


def contrast_loss(scores_BA: torch.Tensor, first: int) -> torch.Tensor:
    """Multiple-negatives ranking (Henderson et al., 2017): cross-entropy of each review's own item; a scalar."""
    own = torch.arange(first, first + len(scores_BA), device=scores_BA.device)
    return functional.cross_entropy(scores_BA.float(), own, reduction="sum")


def masked(
    ids_BL: torch.Tensor, maskable_BL: torch.Tensor, mask_token: int, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with a share of the tokens hidden, and what was there (`IGNORED` elsewhere): 80 % become the mask token, 10 %
    any token, 10 % stay (Devlin et al., 2019)."""
    chosen = (torch.rand(ids_BL.shape, device=ids_BL.device) < MASKED_SHARE) & maskable_BL
    labels = ids_BL.masked_fill(~chosen, IGNORED)
    dice = torch.rand(ids_BL.shape, device=ids_BL.device)
    hidden = ids_BL.masked_fill(chosen & (dice < 0.8), mask_token)
    anything = torch.randint(vocabulary, ids_BL.shape, device=ids_BL.device)
    return torch.where(chosen & (dice >= 0.9), anything, hidden), labels


def masked_loss(logits_MV: torch.Tensor, labels_M: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the hidden tokens; a scalar."""
    return functional.cross_entropy(logits_MV.float(), labels_M, reduction="sum", ignore_index=IGNORED)


def gathered(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows of all workers in the order of their ranks, and where one's own begin. Gradients flow back to all."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows, 0
    counts = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    sizes = [int(count) for count in counts]
    padded = functional.pad(rows, (0, 0) * (rows.dim() - 1) + (0, max(sizes) - len(rows)))
    parts = _AllGather.apply(padded)  # type: ignore[no-untyped-call]
    whole = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return whole, sum(sizes[: dist.get_rank()])


class _AllGather(torch.autograd.Function):
    """All workers' tensors; backward, the sum of what each of them found for one's own.

    torch.distributed.nn has one too, whose backward needs reduce_scatter or all_to_all, which gloo may lack.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, mine: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(True)
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        whole = torch.stack([grad.contiguous() for grad in grads])
        dist.all_reduce(whole)
        return whole[dist.get_rank()]

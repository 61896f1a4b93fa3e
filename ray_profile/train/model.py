"""What is trained: an encoder, and the heads whose losses it is trained by.

The sentiment and tag heads see the review's text only, never its item's title, brand or category: the item's words are
encoded for the contrast alone.

Axes: B rows, A rows of all workers, L length, D width, T tags, K texts of tags.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ray_profile.encode.heads import SENTIMENTS
from ray_profile.encode.text import pool
from ray_profile.train import objectives
from ray_profile.train.batch import Batch

TAGS_AT_ONCE = 256  # whose texts are encoded in a step; of a larger taxonomy, those of the batch and some others
SENTIMENT_SCALE = 16.0  # of logits on unit vectors, so that weights of common size can be sure
TAG_SCALE, TAG_BIAS = 10.0, -10.0  # at the start: Zhai et al., 2023 (SigLIP)


@dataclass(frozen=True)
class TagTexts:
    """The tokens of all tags' texts, and whose each text is."""

    ids_KL: torch.Tensor
    mask_KL: torch.Tensor
    tag_K: torch.Tensor  # sorted
    tags: int


@dataclass(frozen=True)
class Settings:
    """What a `Trainee` is made for."""

    weights: Mapping[str, float]  # by objective
    rows_per_batch: Mapping[str, float]  # rows (mlm: tokens) with the label in an average batch
    pooling: str
    exclusive: bool
    smoothing: float
    mask_token: int = 0
    special_tokens: Sequence[int] = ()


class SentimentHead(nn.Module):
    """softmax(W v + b) over `SENTIMENTS`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(SENTIMENTS))
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, v_BD: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(SENTIMENT_SCALE * v_BD)
        return logits


class TagHead(nn.Module):
    """scale x (v . A_t) + bias_t, with A_t the unit mean of the vectors of the tag's texts plus a learned residual.

    The residual of a tag that training never sees stays zero, so that a new taxonomy works without training.
    """

    def __init__(self, width: int, tags: int, exclusive: bool) -> None:
        super().__init__()
        self.residual = nn.Parameter(torch.zeros(tags, width))
        self.bias = nn.Parameter(torch.zeros(tags))
        # Of one element each: DeepSpeed views parameters as bytes, which a scalar cannot be.
        self.common_bias = nn.Parameter(torch.full((1,), 0.0 if exclusive else TAG_BIAS))
        self.log_scale = nn.Parameter(torch.full((1,), math.log(TAG_SCALE)))

    def forward(self, v_BD: torch.Tensor, texts_TD: torch.Tensor, chosen_T: torch.Tensor) -> torch.Tensor:
        a_TD = texts_TD + self.residual[chosen_T]
        return self.log_scale.exp() * v_BD @ a_TD.to(v_BD.dtype).T + self.bias[chosen_T] + self.common_bias


class MaskedHead(nn.Module):
    """BERT's: dense, GELU, norm, and the words' own embeddings as the last layer."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, h_MD: torch.Tensor, words_VD: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.norm(functional.gelu(self.dense(h_MD)))
        return x @ words_VD.T + self.bias


class Trainee(nn.Module):
    """The encoder and its heads; a forward pass gives the weighted loss and its parts.

    Every worker runs the same modules as often in every step, also with nothing to learn: ZeRO-3 gathers weights at
    each, and would wait for ever for a worker that leaves one out.
    """

    ids_KL: torch.Tensor  # of the tags' texts: see TagTexts
    mask_KL: torch.Tensor
    tag_K: torch.Tensor

    def __init__(self, encoder: nn.Module, settings: Settings, texts: TagTexts | None) -> None:
        super().__init__()
        config = encoder.config
        self.encoder, self.settings = encoder, settings
        wanted = settings.weights
        width = int(config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.sentiment = SentimentHead(width) if "sentiment" in wanted else None
        self.tags = TagHead(width, texts.tags, settings.exclusive) if "tags" in wanted and texts else None
        self.masked = MaskedHead(width, int(config.vocab_size)) if "mlm" in wanted else None  # type: ignore[union-attr, arg-type]
        if texts is not None:
            for name in ("ids_KL", "mask_KL", "tag_K"):
                self.register_buffer(name, getattr(texts, name), persistent=False)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(loss to minimise, mean loss of a row by objective), scalars in float32."""
        loss, parts = batch.ids_BL.new_zeros((), dtype=torch.float32), {}
        for name, summed in self._losses(batch).items():
            parts[name] = summed.float() / self.settings.rows_per_batch[name]
            loss = loss + self.settings.weights[name] * parts[name]
        return loss, {name: part.detach() for name, part in parts.items()}

    def embed(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, D) in float32."""
        hidden = self.encoder(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
        return pool(hidden, mask_BL.sum(1), self.settings.pooling)

    def scores(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What the heads say of a batch: `sentiment` (B, 3) and `tags` (B, T) logits; `contrast` (B', A) scores of the
        rows with a title, a row's own item on the diagonal; `mlm` (1,) the loss of the tokens that chance hides.
        Everything in float32."""
        found: dict[str, torch.Tensor] = {}
        if self.sentiment is not None or self.tags is not None or "contrast" in self.settings.weights:
            v_BD = self.embed(batch.ids_BL, batch.mask_BL)
            if self.sentiment is not None:
                found["sentiment"] = self.sentiment(v_BD.to(_dtype(self.sentiment))).float()
            if self.tags is not None:
                chosen = torch.arange(len(self.tags.bias), device=v_BD.device)
                found["tags"] = self._tag_logits(v_BD, chosen)
            if "contrast" in self.settings.weights:
                scores, first, weight = self._contrast(batch, v_BD)
                found["contrast"] = scores.float().roll(-first, 1)[: len(scores) if weight else 0]
        if self.masked is not None:
            found["mlm"] = self._masked_loss(batch)[None]
        return found

    def _losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        settings = self.settings
        if self.sentiment is not None or self.tags is not None or "contrast" in settings.weights:
            v_BD = self.embed(batch.ids_BL, batch.mask_BL)
            if self.sentiment is not None:
                logits = self.sentiment(v_BD.to(_dtype(self.sentiment)))
                found["sentiment"] = objectives.sentiment_loss(logits, batch.sentiment_B, settings.smoothing)
            if self.tags is not None:
                chosen = self._chosen(batch)
                logits = self._tag_logits(v_BD, chosen)
                labels = batch.tags_BT[:, chosen]
                found["tags"] = objectives.tag_loss(logits, labels, settings.exclusive, settings.smoothing)
            if "contrast" in settings.weights:
                scores, first, weight_B = self._contrast(batch, v_BD)
                found["contrast"] = objectives.contrast_loss(scores, first) * weight_B
        if self.masked is not None:
            found["mlm"] = self._masked_loss(batch)
        return found

    def _tag_logits(self, v_BD: torch.Tensor, chosen_T: torch.Tensor) -> torch.Tensor:
        assert self.tags is not None
        wanted = torch.isin(self.tag_K, chosen_T)
        texts_KD = self.embed(self.ids_KL[wanted], self.mask_KL[wanted])
        place_K = torch.searchsorted(chosen_T, self.tag_K[wanted])
        sums_TD = texts_KD.new_zeros(len(chosen_T), texts_KD.shape[1]).index_add_(0, place_K, texts_KD)
        dtype = _dtype(self.tags)
        logits: torch.Tensor = self.tags(v_BD.to(dtype), functional.normalize(sums_TD, dim=1).to(dtype), chosen_T)
        return logits.float()

    def _chosen(self, batch: Batch) -> torch.Tensor:
        """The tags of this step, sorted: all, or those of the batch and some that are drawn."""
        assert self.tags is not None
        count, device = len(self.tags.bias), batch.ids_BL.device
        if count <= TAGS_AT_ONCE:
            return torch.arange(count, device=device)
        present = batch.tags_BT.nan_to_num().sum(0) > 0
        order = torch.rand(count, device=device).masked_fill(present, 2.0).argsort(descending=True)
        return order[: max(TAGS_AT_ONCE, int(present.sum()))].sort().values

    def _contrast(self, batch: Batch, v_BD: torch.Tensor) -> tuple[torch.Tensor, int, float]:
        """Scores of the rows with a title, where one's own items begin, and 0 where there is no such row (then one row
        stands in, so that this worker encodes and gathers like all others)."""
        paired = batch.about_mask_BL.any(1)
        weight = 1.0 if bool(paired.any()) else 0.0
        rows = paired.nonzero().squeeze(1) if weight else torch.zeros(1, dtype=torch.int64, device=paired.device)
        mask = batch.about_mask_BL[rows].clone()
        mask[:, 0] = True
        items_AD, first = objectives.gathered(self.embed(batch.about_BL[rows], mask))
        item_A, _ = objectives.gathered(batch.item_B[rows])
        title_A, _ = objectives.gathered(batch.title_B[rows])
        scores = objectives.contrast_logits(
            v_BD[rows], items_AD, batch.item_B[rows], item_A, batch.title_B[rows], title_A, first
        )
        return scores, first, weight

    def _masked_loss(self, batch: Batch) -> torch.Tensor:
        assert self.masked is not None
        special = torch.tensor(list(self.settings.special_tokens), device=batch.ids_BL.device)
        maskable = batch.mask_BL & ~torch.isin(batch.ids_BL, special)
        words = self.encoder.get_input_embeddings().weight  # type: ignore[operator]
        hidden, labels = objectives.masked(batch.ids_BL, maskable, self.settings.mask_token, len(words))
        states = self.encoder(input_ids=hidden, attention_mask=batch.mask_BL.long()).last_hidden_state
        at = labels != objectives.IGNORED
        at[0, 0] = True  # a row for the head also where chance hid no token; its label is ignored
        return objectives.masked_loss(self.masked(states[at].to(_dtype(self.masked)), words), labels[at])


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype

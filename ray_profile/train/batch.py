"""One forward pass's examples as tensors, and the way there from a shard.

Axes: B examples, L tokens of the longest, T tags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ray_profile.train.examples import tag_matrix
from ray_profile.train.plan import Drawing, Piece, batches

#: The columns of a shard that training reads.
COLUMNS = ("id", "ids", "about_ids", "item_id", "title_key", "sentiment", "tags", "length", "about_length")
UNKNOWN = -1  # sentiment of a review that nobody rated


@dataclass(frozen=True)
class Batch:
    """Token ids padded with 0 (their mask says where), and labels. Rows without a title have an empty mask there."""

    ids_BL: torch.Tensor  # int64
    mask_BL: torch.Tensor  # bool
    about_BL: torch.Tensor  # int64; another L
    about_mask_BL: torch.Tensor  # bool
    item_B: torch.Tensor  # int64, equal for one item
    title_B: torch.Tensor  # int64, equal for one title in other words' order
    sentiment_B: torch.Tensor  # int64, `UNKNOWN` where nobody rated
    tags_BT: torch.Tensor  # float32, 1 for a tag of the row; NaN in rows that nobody tagged
    names: tuple[str, ...] = ()  # the examples' ids, for whoever wants to know what was trained on
    epoch: int = 0
    number: int = 0  # in the epoch

    def to(self, device: torch.device) -> Batch:
        """On a device; from pinned memory a GPU copies while it computes."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                source = value.pin_memory() if device.type == "cuda" else value
                moved[field.name] = source.to(device, non_blocking=True)
        return replace(self, **moved)

    @property
    def rows(self) -> int:
        """B."""
        return len(self.names)

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.mask_BL.sum() + self.about_mask_BL.sum())


def classes(rows: pl.DataFrame, by: str, tag_rank: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
    """The class by which each row is drawn, (N,): its sentiment (3: none), or the rarest of its tags (T: none)."""
    if by == "sentiment":
        return rows["sentiment"].fill_null(3).cast(pl.Int64).to_numpy()
    assert tag_rank is not None
    rarest = rows.select(pl.row_index("row"), "tags").explode("tags").drop_nulls("tags")
    rank = pl.Series("rank", tag_rank[rarest["tags"].to_numpy()])
    first = rarest.with_columns(rank).sort("row", "rank").unique("row", keep="first", maintain_order=True)
    found = np.full(rows.height, len(tag_rank), np.int64)
    found[first["row"].to_numpy()] = first["tags"].to_numpy()
    return found


def of_piece(
    piece: Piece,
    read: Callable[[int, Sequence[str]], pl.DataFrame],
    drawing: Drawing,
    class_of: Callable[[pl.DataFrame], npt.NDArray[np.int64]],
) -> Iterator[pl.DataFrame]:
    """The batches of a piece as frames of `COLUMNS`; `read` gives columns of a shard."""
    rows = read(piece.shard, COLUMNS)
    lengths, about = rows["length"].to_numpy(), rows["about_length"].to_numpy()
    made = batches(class_of(rows), lengths, about, drawing, piece.epoch, piece.shard)
    for at in range(piece.first, piece.last):
        yield rows[made[at]]


def collate(rows: pl.DataFrame, tags: int, epoch: int = 0, number: int = 0) -> Batch:
    """A frame of `COLUMNS` -> its tensors."""
    ids, mask = rectangle(rows["ids"])
    about, about_mask = rectangle(rows["about_ids"])
    items = rows["item_id"].hash(3).reinterpret(signed=True)
    return Batch(
        ids,
        mask,
        about,
        about_mask,
        torch.from_numpy(items.to_numpy().copy()),
        torch.from_numpy(rows["title_key"].fill_null(0).to_numpy().copy()),
        torch.from_numpy(rows["sentiment"].fill_null(UNKNOWN).cast(pl.Int64).to_numpy().copy()),
        torch.from_numpy(tag_matrix(rows["tags"], tags)),
        tuple(rows["id"]),
        epoch,
        number,
    )


def nothing(tags: int) -> Batch:
    """A batch of one empty text and no label: what a worker trains on when the others have one batch more."""
    frame = pl.DataFrame(
        {"id": ["nothing"], "ids": [[0]], "about_ids": [None], "item_id": [None], "title_key": [None],
         "sentiment": [None], "tags": [None]},
        schema_overrides={"ids": pl.List(pl.Int32), "about_ids": pl.List(pl.Int32), "item_id": pl.String,
                          "title_key": pl.Int64, "sentiment": pl.Int8, "tags": pl.List(pl.Int32)},
    )  # fmt: skip
    return replace(collate(frame, tags), names=())


def rectangle(lists: pl.Series) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of token ids as int64 (B, L), filled with 0, and where they are (B, L); an absent list is empty."""
    lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    mask = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = lists.drop_nulls().explode(empty_as_null=False).to_numpy() if mask.any() else 0
    return torch.from_numpy(ids), torch.from_numpy(mask)

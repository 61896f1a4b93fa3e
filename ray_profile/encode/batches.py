"""Which texts are encoded together, and their token ids as one rectangle.

Axes: B batch, L length in tokens, N texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Ragged:
    """The token ids of N texts, end to end."""

    flat: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]  # (N,), into `flat`
    lengths: npt.NDArray[np.int64]  # (N,)

    def rectangle(self, rows_B: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.int64], bool]:
        """Ids (B, L) of some texts, of which the first is longest, and whether any is shorter: zeros fill its row."""
        lengths_B = self.lengths[rows_B]
        at_L = np.arange(lengths_B[0])
        mask_BL = at_L < lengths_B[:, None]
        ids_BL = np.zeros(mask_BL.shape, dtype=np.int64)
        ids_BL[mask_BL] = self.flat[(self.starts[rows_B, None] + at_L)[mask_BL]]
        return ids_BL, not bool(mask_BL.all())


def batches(lengths: npt.NDArray[np.int64], budget: int) -> Iterator[npt.NDArray[np.intp]]:
    """Row numbers of each batch: at most `budget` tokens with padding, longest first, so that what is too large for the
    memory fails at once.

    A batch that is at least half full ends where the length changes: texts of one length need neither padding nor mask.
    """
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    changes = np.flatnonzero(np.diff(descending)) + 1  # where a shorter length begins
    at = 0
    while at < len(order):
        most = max(1, budget // int(descending[at]))
        end = min(at + most, len(order))
        last = np.searchsorted(changes, end, side="right") - 1
        if last >= 0 and changes[last] - at >= most / 2:
            end = int(changes[last])
        yield order[at:end]
        at = end

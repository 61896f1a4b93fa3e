"""The vectors nearest to a vector: an approximate index of one part's vectors, a byte a number, read where it lies.

Small parts are scanned whole. Of a large one only the cells whose centres are nearest are scanned (an inverted file,
Jégou et al., 2011), which takes a fiftieth of the time of a graph to build: a part is built anew whenever a profile in
it changes. Whoever asks ranks what is found by the exact vectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ray_profile.errors import StorageError

SCANNED = 10_000  # vectors up to which a part is scanned whole: about a millisecond
PROBED = 0.125  # share of the cells that a question looks into
_POINTS = 64  # vectors a cell that its centre is learned from
_ROUNDS = 10  # of k-means


def write(path: Path, vectors: npt.NDArray[np.float16]) -> None:
    """Write the index of unit vectors (N, D), N > 0; a vector's number is its row."""
    count, width = vectors.shape
    byte, product = faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    rows = np.ascontiguousarray(vectors, np.float32)
    index: Any
    if count <= SCANNED:
        index = faiss.IndexScalarQuantizer(width, byte, product)
    else:
        cells = int(np.sqrt(count))
        index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(width), width, cells, byte, product)
        index.cp.niter, index.cp.max_points_per_centroid, index.cp.seed = _ROUNDS, _POINTS, 0
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(path))


class Nearest:
    """An index that is opened. Several threads may ask at once."""

    def __init__(self, path: Path) -> None:
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise StorageError(
                f"{path} cannot be opened ({str(error).splitlines()[-1]}); delete it, and run `ray-profile index`"
            ) from error
        if isinstance(self._index, faiss.IndexIVF):
            self._index.nprobe = max(1, round(self._index.nlist * PROBED))

    def search(self, vector: npt.NDArray[np.float32], count: int) -> list[tuple[float, int]]:
        """At most `count` vectors, about the nearest to (D,): their inner products, roughly, and their numbers."""
        most = min(count, self._index.ntotal)
        scores, found = self._index.search(np.ascontiguousarray(vector, np.float32)[None], most)
        return [(float(score), int(number)) for score, number in zip(scores[0], found[0], strict=True) if number >= 0]

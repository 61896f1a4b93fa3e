"""One Parquet file that appears whole or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_profile.store.root import Root

ROWS_PER_GROUP = 8_192  # small enough that one user's rows are found by the groups' smallest and largest user id
ZSTD_LEVEL = 3


def write(root: Root, path: str, data: pa.Table) -> int:
    """Write a table as one Parquet file at `path` (as `Root.path` gives it), whole or not at all; its size in bytes."""
    options: dict[str, Any] = {"compression": "zstd", "compression_level": ZSTD_LEVEL, "row_group_size": ROWS_PER_GROUP}
    if root.remote:
        with root.arrow_fs.open_output_stream(path) as stream:  # S3 shows an object only when it is complete
            pq.write_table(data, stream, **options)
            return int(stream.tell())
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(f"{final.name}.{secrets.token_hex(8)}.draft")
    try:
        pq.write_table(data, draft, **options)
        size = draft.stat().st_size
        draft.replace(final)
    finally:
        draft.unlink(missing_ok=True)
    return size

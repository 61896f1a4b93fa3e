"""One Parquet file that appears whole or not at all."""

from __future__ import annotations

import secrets
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from ray_profile.store.root import Root

#: One user's profile is found by the groups' smallest and largest user id, and its group is then read whole: smaller
#: groups are read faster and written more slowly (docs/performance.md).
ROWS_PER_GROUP = 2_048
OPTIONS: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "row_group_size": ROWS_PER_GROUP}


def write(root: Root, path: str, data: pa.Table) -> int:
    """Write a table as one Parquet file at `path` (as `Root.path` gives it), whole or not at all; its size in bytes."""
    frame = pl.DataFrame(data)  # its writer encodes columns in parallel, and smaller than Arrow's does
    if root.remote:
        buffer = BytesIO()
        frame.write_parquet(buffer, **OPTIONS)
        body = buffer.getvalue()
        root.fs.pipe_file(path, body)  # S3 shows an object only when it is complete
        return len(body)
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(f"{final.name}.{secrets.token_hex(8)}.draft")
    try:
        frame.write_parquet(draft, **OPTIONS)
        size = draft.stat().st_size
        draft.replace(final)
    finally:
        draft.unlink(missing_ok=True)
    return size

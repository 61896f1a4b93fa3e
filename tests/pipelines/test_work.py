"""The steps of a task, one by one."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from ray_profile.config import Encoder
from ray_profile.encode.text import TextEncoder
from ray_profile.pipelines import work
from ray_profile.pipelines.report import Report, add


@pytest.fixture(scope="module")
def loaded(encoder: Path) -> TextEncoder:
    return TextEncoder.load(Encoder(model=str(encoder), dtype="float32", max_length=64), device="cpu")


def block_of(texts: list[str | None]) -> work.Block:
    return work.Block(pl.DataFrame({"text": texts}, schema={"text": pl.String}), Report("s", "f"))


def test_a_text_that_stands_again_is_tokenised_once_and_has_the_same_vector(loaded: TextEncoder) -> None:
    block = work.tokenise(block_of(["good", None, "好", "good"]), loaded.tokenizer)
    assert block.rows["ids"].is_null().to_list() == [False, True, False, True]
    assert (block.report.texts, block.report.truncated) == (3, 0)
    rows = work.encode(block, loaded).rows
    assert rows["text"].to_list() == ["good", None, "好", "good"]
    assert rows["vector"].is_null().to_list() == [False, True, False, False]
    assert rows["vector"][0].to_list() == rows["vector"][3].to_list()


def test_tokenised_blocks_that_were_joined_keep_their_rows(loaded: TextEncoder) -> None:
    """Ray may join blocks between two steps, and then a text has its tokens in more than one row."""
    parts = [work.tokenise(block_of(texts), loaded.tokenizer).rows for texts in (["good", "a"], ["good", "good", "b"])]
    rows = work.encode(work.Block(pl.concat(parts), Report("s", "f")), loaded).rows
    assert rows["text"].to_list() == ["good", "a", "good", "good", "b"]
    assert rows["vector"].null_count() == 0


def test_slices_keep_the_rows_and_count_the_report_once() -> None:
    block = block_of([f"t{at}" for at in range(2 * work.ROWS_PER_TEXT_BLOCK + 1)])
    block.report.rows_read = block.rows.height
    parts = list(work.slices(block))
    assert [part.rows.height for part in parts] == [work.ROWS_PER_TEXT_BLOCK, work.ROWS_PER_TEXT_BLOCK, 1]
    assert add(part.report for part in parts).rows_read == block.rows.height


def test_a_row_that_is_lost_or_doubled_on_the_way_stops_the_run() -> None:
    report = Report("s", "f", rows_read=2, rows_folded=2)
    with pytest.raises(AssertionError, match="2 rows were folded, but the files written hold 0"):
        work.assert_all_arrived([], [report])

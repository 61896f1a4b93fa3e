from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from ray_profile.encode.batches import Ragged, batches
from ray_profile.encode.place import CORE_TOKENS, Place

CPU = torch.device("cpu")


def test_every_core_takes_batches_and_results_keep_their_order() -> None:
    before = torch.get_num_threads()
    place = Place(CPU, False, 2)
    both = threading.Barrier(2, timeout=60)  # passes only if two items are in work at once

    def work(item: int) -> tuple[int, int]:
        both.wait()
        return item, torch.get_num_threads()

    try:
        assert place.map(work, [3, 1, 2, 0]) == [(3, 1), (1, 1), (2, 1), (0, 1)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_failure_reaches_the_caller_and_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()

    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    try:
        with pytest.raises(ValueError, match="two"):
            Place(CPU, False, 2).map(work, [1, 2, 3])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_single_batch_may_use_every_core() -> None:
    threads = Place(CPU, False, 2).map(lambda _: threading.current_thread(), [0])
    assert threads == [threading.current_thread()]


def test_batches_fit_a_core_and_give_every_core_some() -> None:
    place = Place(CPU, False, 4)
    assert place.batch_tokens(8192, 1_000_000) == CORE_TOKENS
    assert place.batch_tokens(64, 1_000_000) == 64
    assert place.batch_tokens(8192, 2_000) == 500
    assert place.batch_tokens(8192, 10) == 128
    assert Place(torch.device("cuda"), True, 4).batch_tokens(8192, 10) == 8192


def test_a_named_dtype_is_taken_and_auto_is_decided() -> None:
    assert Place.choose("cpu", "bf16").bf16
    assert not Place.choose("cpu", "float32").bf16
    assert isinstance(Place.choose("cpu", "auto").bf16, bool)


def test_texts_of_one_length_are_batched_without_padding() -> None:
    lengths = np.array([5] * 30 + [4] * 30 + [3])
    plan = list(batches(lengths, 100))
    assert [len(rows) for rows in plan] == [20, 10, 25, 6]  # 20 x 5, the rest of the 5s, 25 x 4; too few 4s: with the 3
    assert sorted(np.concatenate(plan)) == list(range(61))


def test_a_rectangle_holds_each_text_and_zeros() -> None:
    texts = Ragged(np.arange(1, 7, dtype=np.int32), np.array([0, 1, 4]), np.array([1, 3, 2]))
    ids, is_padded = texts.rectangle(np.array([1, 2, 0]))
    assert ids.tolist() == [[2, 3, 4], [5, 6, 0], [1, 0, 0]]
    assert is_padded
    ids, is_padded = texts.rectangle(np.array([1]))
    assert ids.tolist() == [[2, 3, 4]]
    assert not is_padded

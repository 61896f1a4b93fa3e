"""Labels that contradict their texts are found, by what other users' reviews say."""

from __future__ import annotations

import sys

import numpy as np
import polars as pl
import pytest

from ray_profile.errors import ConfigError
from ray_profile.train.doubt import DOUBTFUL, doubtful


def reviews(rows: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, pl.Series, pl.Series]:
    """Vectors around one of three directions, the direction as label, 60 users, ids r0, r1 ..."""
    random = np.random.default_rng(seed)
    labels = random.choice(3, rows, p=[0.2, 0.2, 0.6])
    vectors = np.eye(8)[labels] + random.normal(0, 0.2, (rows, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    users = pl.Series("user_id", [f"u{at}" for at in random.integers(0, 60, rows)])
    return vectors.astype(np.float16), labels, users, pl.Series("id", [f"r{at}" for at in range(rows)])


def test_planted_flips_are_found_far_more_often_than_by_chance() -> None:
    vectors, labels, users, ids = reviews()
    wrong = labels.copy()
    planted = np.random.default_rng(1).choice(len(labels), 30, replace=False)
    wrong[planted] = (labels[planted] + 1) % 3
    found = doubtful(vectors, wrong, users, ids)
    names = {f"r{at}" for at in planted}
    hits = found["id"].is_in(list(names))
    assert hits.sum() >= 24  # 30 of 600 rows are planted: as many rows drawn by chance hold one or two
    assert hits.mean() >= 0.6
    assert hits.head(15).mean() >= 0.9
    right = dict(zip(ids, labels.tolist(), strict=True))
    named = found.filter(hits)
    assert (named["suggested"] == pl.Series([right[each] for each in named["id"]])).mean() > 0.9


def test_the_table_is_as_it_says() -> None:
    vectors, labels, users, ids = reviews()
    labels[:20] = (labels[:20] + 1) % 3
    found = doubtful(vectors, labels, users, ids)
    assert found.schema == pl.Schema(DOUBTFUL)
    assert found["rank"].to_list() == list(range(1, found.height + 1))
    assert (found["given"] != found["suggested"]).all()
    assert found["probability"].is_between(1 / 3, 1).all()


def test_the_order_of_the_rows_changes_nothing() -> None:
    vectors, labels, users, ids = reviews()
    labels[:20] = (labels[:20] + 1) % 3
    turned = np.random.default_rng(2).permutation(len(labels))
    there = doubtful(vectors, labels, users, ids)
    again = doubtful(vectors[turned], labels[turned], users.gather(turned), ids.gather(turned))
    assert set(there["id"]) == set(again["id"])


def test_a_users_own_reviews_do_not_vouch_for_their_labels() -> None:
    vectors, labels, users, ids = reviews()
    odd = np.arange(len(labels)) < 12  # nearly class 2, in a corner of their own, and labelled 0
    vectors[odd] = 0.8 * np.eye(8)[2] + 0.6 * np.eye(8)[7]
    labels[odd] = 0
    of_one = pl.Series(["one"] * 12 + users[12:].to_list())
    of_many = pl.Series([f"many{at}" for at in range(12)] + users[12:].to_list())
    assert set(doubtful(vectors, labels, of_one, ids)["id"]) >= set(ids.head(12))
    assert not set(doubtful(vectors, labels, of_many, ids)["id"]) & set(ids.head(12))


def test_rows_without_a_label_are_left_out_and_class_numbers_kept() -> None:
    vectors, labels, users, ids = reviews()
    labels = np.where(labels == 1, -1, labels)  # classes 0 and 2 are left: the numbers must not close up
    labels[np.flatnonzero(labels == 2)[:10]] = 0
    found = doubtful(vectors, labels, users, ids)
    assert found.height
    assert set(found["given"]) | set(found["suggested"]) == {0, 2}
    assert not found["id"].is_in(ids.filter(pl.Series(labels == -1)).to_list()).any()


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_of_few_rows_nothing_is_said(rows: int) -> None:
    vectors, labels, users, ids = reviews()
    found = doubtful(vectors[:rows], labels[:rows], users.head(rows), ids.head(rows))
    assert found.height == 0
    assert found.schema == pl.Schema(DOUBTFUL)


def test_of_one_class_or_one_user_nothing_is_said() -> None:
    vectors, labels, users, ids = reviews()
    assert doubtful(vectors, np.zeros_like(labels), users, ids).height == 0
    assert doubtful(vectors, labels, pl.Series(["me"] * len(labels)), ids).height == 0


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(ConfigError, match=r"pip install 'ray_profile\[train\]'"):
        doubtful(*reviews())

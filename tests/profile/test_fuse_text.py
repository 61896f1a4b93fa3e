"""What the text facet says of a person: feelings, tags, words, names, languages, and the vector of it all."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections import defaultdict
from typing import Any

import facet_world as world
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_profile.encode.heads import Odds, Probe, TagMatrix
from ray_profile.profile.fuse import mean_fusion, unit
from ray_profile.profile.fuse_text import PRIOR_WEIGHT
from ray_profile.profile.items import Items
from ray_profile.profile.tagging import Tagger
from ray_profile.schema import KIND_WEIGHT

Row = dict[str, Any]
FEELINGS = ("negative", "neutral", "positive")
PARENTS = {"guitar": "music", "coffee": "kitchen"}
ITEM_TAGS = {
    "g1": {"guitar": ("catalogue", 1.0), "music": ("catalogue", 1.0)},
    "g2": {"guitar": ("catalogue", 1.0), "music": ("catalogue", 1.0)},
    "咖啡1": {"coffee": ("catalogue", 1.0), "kitchen": ("catalogue", 1.0)},
    "t1": {"outdoor": ("catalogue", 1.0)},
}


def review(rating: float | None = None, item: str | None = "g1", day: float = 1, **more: Any) -> Row:
    return {"user_id": "ann", "kind": "review", "item_id": item, "ts": world.at(day), "rating": rating, **more}


def _decay(r: Row, as_of: dt.datetime, half_life: float = 90) -> float:
    return float(0.5 ** ((as_of - r["ts"]).total_seconds() / 86_400 / half_life))


def _feeling(r: Row) -> tuple[np.ndarray, str] | None:
    if r["kind"] != "review":
        return None
    if r["rating"] is not None:
        return np.eye(3)[0 if r["rating"] <= 2.5 else 1 if r["rating"] < 3.5 else 2], "stars"
    if r.get("vector") is not None:
        return world.PROBE.predict(np.array([r["vector"]], np.float16))[0].astype(float), "probe"
    return None


def _row_tags(r: Row) -> dict[str, tuple[str, float]]:
    """Tags of one row: the catalogue's, and what the text resembles (with its parents) where it adds any."""
    tags = dict(ITEM_TAGS.get(r.get("item_id") or "", {}))
    if r.get("vector") is not None:
        cosines = zip(("guitar", "coffee", "outdoor"), np.array(r["vector"], np.float16).astype(float), strict=False)
        for tag, cosine in cosines:
            for name in (tag, PARENTS.get(tag)):
                if cosine >= 0.6 and name is not None:
                    tags.setdefault(name, ("zero-shot", float(cosine)))
    return tags


def _taggable(r: Row) -> bool:
    known = r.get("item_id") in world.PATHS or r.get("vector") is not None
    return KIND_WEIGHT[r["kind"]] > 0 and known


def _stance(balance: float | None) -> str | None:
    if balance is None:
        return None
    return "liked" if balance > 0.25 else "disliked" if balance < -0.25 else "mixed"


def _tags(mine: list[Row], everybody: list[Row]) -> dict[str, Row]:
    # Weights are relative to the end of the user's last month, as the share's smoothing is.
    newest = max(r["ts"] for r in mine)
    end = (newest.replace(day=1, hour=0, minute=0) + dt.timedelta(days=32)).replace(day=1)
    could = [r for r in mine if _taggable(r)]
    all_weight = sum(KIND_WEIGHT[r["kind"]] * _decay(r, end) for r in could)
    shop = [r for r in everybody if _taggable(r)]
    out: dict[str, Row] = {}
    for tag in {tag for r in could for tag in _row_tags(r)}:
        having = [r for r in could if tag in _row_tags(r)]
        prior = sum(tag in _row_tags(r) for r in shop) / len(shop)
        weights = [KIND_WEIGHT[r["kind"]] * _decay(r, end) for r in having]
        by_source: dict[str, float] = defaultdict(float)
        felt = np.zeros(3)
        for r, weight in zip(having, weights, strict=True):
            by_source[_row_tags(r)[tag][0]] += weight
            feeling = _feeling(r)
            felt += 0 if feeling is None else feeling[0] * weight
        balance = round((felt[2] - felt[0]) / felt.sum(), 9) if felt.sum() else None
        items = {r["item_id"] for r in having if r.get("item_id")}
        out[tag] = {
            "share": (sum(weights) + PRIOR_WEIGHT * prior) / (all_weight + PRIOR_WEIGHT),
            "score": sum(_row_tags(r)[tag][1] for r in having) / len(having),
            "support": len(having),
            "of": len(could),
            "items": len(items),
            "last": max(r["ts"] for r in having),
            "stance": _stance(balance),
            "source": sorted(by_source, key=lambda name: (-round(by_source[name], 9), name))[0],
            "weak": len(items) < 2,
        }  # fmt: skip
    return out


@settings(max_examples=15, deadline=None)
@given(st.lists(world.ROW, min_size=1, max_size=25))
def test_tags_and_feelings_say_what_a_plain_reading_of_the_rows_says(rows: list[Row]) -> None:
    for profile in world.profiles_of(world.states_of(rows)).to_dicts():
        mine = [r for r in rows if r["user_id"] == profile["user_id"]]
        texts = dict(zip(world.rows_of(mine)["id"], mine, strict=True))
        wanted = _tags(mine, rows)
        said = {t["tag"]: {name: value for name, value in t.items() if name in next(iter(wanted.values()))}
                for t in profile["tags"]}  # fmt: skip
        found = world.difference(said, wanted, tolerance=1e-6)  # scores are float32
        assert found is None, found
        for tag in profile["tags"]:
            _check_evidence(tag, texts)
        _check_counts(profile, mine)


def _check_evidence(tag: Row, texts: dict[str, Row]) -> None:
    evidence = tag["evidence"]
    assert 1 <= len(evidence) <= 4
    spoken = [texts[act["id"]]["text"] is not None for act in evidence]
    assert spoken == sorted(spoken, reverse=True), "said first, then done"
    for kind in (True, False):
        weights = [act["weight"] for act, said in zip(evidence, spoken, strict=True) if said is kind]
        assert weights == sorted(weights, reverse=True)
        assert len(weights) <= 2
    for act in evidence:
        row = texts[act["id"]]
        assert tag["tag"] in _row_tags(row)
        assert row["kind"] == act["kind"] != "return"
        title = next((each.get("title") for each in world.CATALOGUE if each["item_id"] == row["item_id"]), None)
        assert act["snippet"] == (row["text"] if row["text"] or row["kind"] == "review" else title)


def _check_periods(profile: Row, mine: list[Row]) -> None:
    """Each month's feelings are those of its own reviews, the oldest first."""
    felt = [r for r in mine if _feeling(r) is not None]
    months = sorted({r["ts"].date().replace(day=1) for r in felt})
    assert [each["period"] for each in profile["feelings"]] == months[-36:]
    for each in profile["feelings"]:
        rows = [r for r in felt if r["ts"].date().replace(day=1) == each["period"]]
        weights = [_decay(r, profile["as_of"]) for r in rows]
        shares = sum(_feeling(r)[0] * weight for r, weight in zip(rows, weights, strict=True)) / sum(weights)  # type: ignore[index]
        assert [each[name] for name in FEELINGS] == pytest.approx(list(shares), abs=1e-6)
        assert each["n"] == len(rows)


def _check_counts(profile: Row, mine: list[Row]) -> None:
    stars = [r["rating"] for r in mine if r["rating"] is not None]
    assert profile["review_count"] == sum(r["kind"] == "review" for r in mine)
    assert profile["text_count"] == sum(r["text"] is not None for r in mine)
    assert profile["mean_rating"] == (pytest.approx(sum(stars) / len(stars)) if stars else None)
    felt = [(feeling, _decay(r, profile["as_of"])) for r in mine if (feeling := _feeling(r)) is not None]
    _check_periods(profile, mine)
    if not felt:
        assert profile["sentiment"] is None
        return
    shares = sum(feeling * weight for (feeling, _), weight in felt) / sum(weight for _, weight in felt)
    sentiment = profile["sentiment"]
    assert [sentiment[name] for name in FEELINGS] == pytest.approx(list(shares), abs=1e-6)
    assert sum(sentiment[name] for name in FEELINGS) == pytest.approx(1, abs=1e-6)
    assert sentiment["n"] == len(felt)
    sources = {source for (_, source), _ in felt}
    assert sentiment["source"] == (sources.pop() if len(sources) == 1 else "mixed")
    assert sentiment["evidence"]


# ---- feelings


def test_stars_speak_before_the_probe_and_both_are_mixed() -> None:
    glad = {"text": "so so", "vector": world.PLAIN}  # the probe reads axis 3 as positive
    assert world.profile_of([review(1.0, **glad)])["sentiment"]["negative"] == 1
    unstarred = world.profile_of([review(None, **glad)])["sentiment"]
    assert unstarred["source"] == "probe"
    assert unstarred["positive"] > 0.8
    both = world.profile_of([review(1.0), review(None, **glad)])["sentiment"]
    assert (both["source"], both["n"]) == ("mixed", 2)
    silent = world.profile_of([review(None, text="so so", vector=world.PLAIN)], probe=None)
    assert silent["sentiment"] is None


def test_a_head_that_was_trained_with_the_encoder_is_called_the_model() -> None:
    head = Probe(world.PROBE.weights, world.PROBE.bias, {}, source="model")
    glad = review(None, text="so so", vector=world.PLAIN)
    felt, probed = (world.profile_of([glad], probe=each)["sentiment"] for each in (head, world.PROBE))
    assert (felt["source"], probed["source"]) == ("model", "probe")
    assert {**felt, "source": "probe"} == probed
    both = world.profile_of([review(1.0), glad], probe=head)["sentiment"]
    assert both["source"] == "mixed"
    stars = world.profile_of([review(1.0, text="so so", vector=world.PLAIN)], probe=head)["sentiment"]
    assert (stars["source"], stars["negative"]) == ("stars", 1)


def test_evidence_names_the_feeling_it_speaks_for_and_three_even_shares_still_have_some() -> None:
    rows = [review(rating, text=f"stars {rating}", day=n) for n, rating in enumerate([1.0, 3.0, 5.0, 5.0, 5.0, 5.0])]
    evidence = world.profile_of(rows)["sentiment"]["evidence"]
    told = [(act["feeling"], act["snippet"]) for act in evidence]
    assert told == [("negative", "stars 1.0"), ("neutral", "stars 3.0")] + [("positive", "stars 5.0")] * 3
    even = Probe(np.zeros((3, 4), np.float32), np.array([0.1, 0, 0], np.float32), {})
    (act,) = world.profile_of([review(None, text="hm", vector=world.PLAIN)], probe=even)["sentiment"]["evidence"]
    assert act["feeling"] == "negative"


def test_the_trend_is_the_change_in_thirty_days_and_null_for_one_month_or_two_rows() -> None:
    def trend(*rows: Row, **changes: Any) -> float | None:
        value: float | None = world.profile_of(rows, **changes)["sentiment"]["trend"]
        return value

    february, march = world.at(1), world.at(31)
    worse = [review(5.0, day=1), review(5.0, day=2), review(1.0, day=31)]
    assert trend(*worse) == pytest.approx(-2 / 29 * 30)  # February 2024 has 29 days
    assert trend(review(1.0, day=1), review(1.0, day=2), review(5.0, day=31)) == pytest.approx(2 / 29 * 30)
    assert (february.month, march.month) == (2, 3)
    assert trend(*worse[1:]) is None
    assert trend(*[review(5.0, day=n) for n in (1, 2, 3)]) is None


@pytest.mark.parametrize("half_life", [0.3, 0.5, 1.0])
def test_the_trend_survives_weights_that_differ_beyond_a_floats_digits(half_life: float) -> None:
    start, middle, end = (dt.datetime(2024, month, day, tzinfo=dt.UTC) for month, day in ((2, 1), (3, 1), (4, 29)))
    rows = [{**review(stars), "ts": ts} for stars, ts in ((1.0, start), (5.0, middle), (5.0, end))]
    slope = world.profile_of(rows, half_life_days=half_life)["sentiment"]["trend"]
    weights = np.array([0.5 ** (days / half_life) for days in (29, 31, 2)])
    x, y = np.array([0, 29, 60]) / 30, np.array([-1.0, 1, 1])
    dx, dy = x - x[2], y - y[2]  # relative to the heaviest, whose weight is all but all of it
    assert slope == pytest.approx((weights * dx * dy).sum() / (weights * dx * dx).sum(), rel=1e-3)


# ---- tags


def test_three_bad_reviews_are_an_interest_and_a_dislike() -> None:
    rows = [review(1.0, item, day=n, text=f"poor {n}") for n, item in enumerate(["g1", "g2", "g1"])]
    tags = {t["tag"]: t for t in world.profile_of([*rows, {**review(), "kind": "view", "item_id": "t1"}])["tags"]}
    assert tags["guitar"]["stance"] == "disliked"
    assert tags["guitar"]["share"] > tags["outdoor"]["share"]
    assert (tags["guitar"]["support"], tags["guitar"]["of"], tags["guitar"]["items"]) == (3, 4, 2)
    assert not tags["guitar"]["weak"]
    assert (tags["outdoor"]["stance"], tags["outdoor"]["weak"]) == (None, True)


def test_a_models_probabilities_are_averaged_with_nothing_else() -> None:
    """Where the model weighs most, its score is a mean probability; where it does not, it has no part in the score."""
    odds = Odds(1.0, np.zeros(2, np.float32), "sigmoid")
    heard = TagMatrix(("guitar", "outdoor"), np.eye(2, 4, dtype=np.float32), np.full(2, 0.5, np.float32), odds)
    tagger = Tagger(world.TAXONOMY, world.MATRIX, heard)
    said = [review(3.0, None, day=n, text="mm", vector=vector) for n, vector in enumerate([world.GUITAR, world.BOTH])]
    p = 1 / (1 + np.exp(-np.array([1, 0.6])))

    def scores(*rows: Row) -> dict[str, tuple[str, float, int]]:
        found = world.profile_of(rows, tagger=tagger)["tags"]
        return {t["tag"]: (t["source"], t["score"], t["support"]) for t in found}

    only = scores(*said)
    assert only["guitar"] == only["music"] == ("model", pytest.approx(p.mean(), abs=1e-3), 2)
    view = {**review(day=2), "kind": "view"}  # of g1, which the catalogue calls a guitar; lighter than a review
    assert scores(*said, view)["guitar"] == ("model", pytest.approx(p.mean(), abs=1e-3), 3)
    bought = [{**review(day=2 + n), "kind": "purchase"} for n in range(9)]
    assert scores(*said, *bought)["guitar"] == ("catalogue", 1.0, 11)
    search = {**review(item=None, day=2), "kind": "search", "text": "strings", "vector": world.GUITAR}
    assert scores(said[1], *[search] * 9)["guitar"] == ("zero-shot", pytest.approx(1.0, abs=1e-3), 10)


def test_a_return_gives_no_tag_and_no_evidence_and_is_not_counted_among_what_could() -> None:
    back = {**review(), "kind": "return", "text": "sent back", "vector": world.OUTDOOR, "rating": None}
    assert world.profile_of([back])["tags"] == []
    tags = world.profile_of([back, {**review(), "kind": "purchase", "item_id": "t1"}])["tags"]
    assert [(t["tag"], t["support"], t["of"]) for t in tags] == [("outdoor", 1, 1)]


def test_the_prior_comes_from_the_statistics_and_an_unknown_tag_has_none() -> None:
    corpus = pl.DataFrame(
        {"statistic": ["taggable", "tag"], "key": ["", "outdoor"], "value": [10.0, 4.0]},
        schema={"statistic": pl.String, "key": pl.String, "value": pl.Float64},
    )
    rows = [{**review(), "kind": "view", "item_id": item} for item in ("t1", "g1")]
    weight = 0.5 ** ((dt.datetime(2024, 3, 1, tzinfo=dt.UTC) - world.at(1)).total_seconds() / 86_400 / 90)
    shares = {t["tag"]: t["share"] for t in world.profile_of(rows, statistics=corpus)["tags"]}
    assert shares["outdoor"] == pytest.approx((weight + 2 * 0.4) / (2 * weight + 2))
    assert shares["guitar"] == pytest.approx(weight / (2 * weight + 2))
    nothing = world.profile_of(rows, statistics=corpus.clear())
    assert [t["share"] for t in nothing["tags"]] == pytest.approx([weight / (2 * weight + 2)] * 3)


def test_distinct_items_are_exact_in_a_full_months_room_and_estimated_beyond() -> None:
    catalogue = [{"item_id": f"g{n}", "categories": ["Guitars"]} for n in range(2000)]
    catalogue += [{"item_id": f"t{n}", "categories": ["Outdoor"]} for n in range(2)]
    items = Items.of(world.items_table(catalogue), world.WIDTH)

    def counted(guitars: int) -> dict[str, tuple[int, bool]]:
        names = [f"g{n}" for n in range(guitars)] + ["t0", "t1"]
        rows = [{**review(), "kind": "view", "item_id": name} for name in names]
        return {t["tag"]: (t["items"], t["weak"]) for t in world.profile_of(rows, items=items)["tags"]}

    assert counted(500) == {"guitar": (500, False), "music": (500, False), "outdoor": (2, False)}
    many = counted(2000)  # 4,002 pairs of tag and item, of which 1,024 have room
    assert many["guitar"][0] == pytest.approx(2000, rel=0.15)
    assert many["outdoor"][0] >= 2
    assert not many["outdoor"][1]


def test_a_long_text_is_shown_by_its_beginning_and_a_silent_review_by_nothing() -> None:
    rows = [review(5.0, text="帐篷" * 500), review(4.0, day=2)]
    evidence = world.profile_of(rows)["tags"][0]["evidence"]
    assert [act["snippet"] for act in evidence] == [("帐篷" * 500)[:160], None]


# ---- words


def test_keywords_weigh_by_rarity_and_leave_to_the_phrase_what_stands_nowhere_else() -> None:
    mine = [review(text="Acoustic bridge. Acoustic bridge!", day=n) for n in range(3)]
    others = [{**review(text="Nice strings, nice strings"), "user_id": f"u{n}"} for n in range(9)]
    mine.append(review(text="strings strings strings", day=4))
    states = world.states_of([*mine, *others])
    ann = world.profiles_of(states).to_dicts()[0]
    words = {k["term"]: k for k in ann["keywords"]}
    assert "acoustic bridge" in words
    assert not {"acoustic", "bridge"} & set(words)
    assert words["acoustic bridge"]["n"] == 6
    ids = set(world.rows_of(mine)["id"])
    assert {k["id"] for k in ann["keywords"]} <= ids
    decayed = sum(2 * _decay(r, dt.datetime(2024, 3, 1, tzinfo=dt.UTC)) for r in mine[:3])
    assert words["acoustic bridge"]["weight"] == pytest.approx(decayed * math.log(1 + (10 - 1 + 0.5) / 1.5))
    assert words["strings"]["weight"] < words["acoustic bridge"]["weight"] / 20  # everybody says it: it tells little


def test_those_who_never_wrote_make_no_word_rare() -> None:
    wrote = [review(text="Good good strings"), *({**review(text="Good bag"), "user_id": f"u{n}"} for n in range(4))]
    silent = [{"user_id": f"s{n}", "ts": world.at(1), "kind": "view", "item_id": "g1"} for n in range(200)]
    few, many = (world.profiles_of(world.states_of(rows)).to_dicts()[0] for rows in (wrote, [*wrote, *silent]))
    assert few["user_id"] == many["user_id"] == "ann"
    assert few["keywords"] == many["keywords"] != []


def test_the_only_user_of_a_shop_has_keywords_too() -> None:
    words = world.profile_of([review(text="a warm bridge pickup, a warm tone"), review(text="warm", day=2)])["keywords"]
    assert words[0]["term"] == "warm"


def test_a_word_that_also_stands_alone_stays_beside_its_phrase() -> None:
    mine = [review(text="acoustic bridge. My acoustic. An acoustic bridge"), {**review(text="fine"), "user_id": "bo"}]
    words = {k["term"]: k["n"] for k in world.profiles_of(world.states_of(mine)).to_dicts()[0]["keywords"]}
    assert words["acoustic bridge"] == 2
    assert words["acoustic"] == 3
    assert "bridge" not in words


def test_chinese_phrases_swallow_their_words() -> None:
    mine = [review(text="不锈钢咖啡机，不锈钢咖啡机"), {**review(text="好"), "user_id": "bo"}]
    words = {k["term"]: k["n"] for k in world.profiles_of(world.states_of(mine)).to_dicts()[0]["keywords"]}
    assert "不锈钢咖啡机" in words
    assert not {"不锈钢", "咖啡机"} & set(words)


def test_a_names_place_slices_its_snippet_which_is_a_window_of_the_text() -> None:
    texts = ["😀" * 100 + " I love my Fender amp " + "和" * 200, "星巴克很好", "Fender"]
    rows = [review(text=text, day=n) for n, text in enumerate(texts)]
    by_id = dict(zip(world.rows_of(rows)["id"], texts, strict=True))
    entities = {e["entity"]: e for e in world.profile_of(rows)["entities"]}
    assert set(entities) == {"brand:fender", "brand:星巴克"}
    assert entities["brand:fender"]["n"] == 2
    assert entities["brand:fender"]["last"] == world.at(2)
    for name, entity in entities.items():
        for act in entity["evidence"]:
            found = act["snippet"][act["start"] : act["end"]]
            assert "brand:" + found.lower() == name
            assert act["snippet"] in by_id[act["id"]]
            assert len(act["snippet"]) <= 160


def test_languages_are_shares_of_the_texts_that_can_be_told() -> None:
    english = "This guitar stays in tune for a whole evening and the case is sturdy"
    rows = [review(text=english, day=n) for n in range(3)] + [review(text="咖啡机很好用，推荐购买"), review(text="😀")]
    languages = world.profile_of(rows)["languages"]
    assert [(each["language"], each["share"]) for each in languages] == [("en", 0.75), ("zh", 0.25)]
    newest = world.rows_of(rows[:3]).sort("ts")["id"][-1]
    assert [act["id"] for act in languages[0]["evidence"]] == [newest]
    assert languages[1]["evidence"][0]["snippet"].startswith("咖啡机")


# ---- the vector


def _unit(vector: np.ndarray) -> list[float]:
    return list(vector / np.linalg.norm(vector))


def test_the_embedding_is_the_weighted_mean_of_texts_and_items() -> None:
    text = review(5.0, None, text="hello", vector=world.PLAIN)
    bought = {**review(), "kind": "purchase", "item_id": "t1", "ts": world.at(40)}
    end = dt.datetime(2024, 4, 1, tzinfo=dt.UTC)
    both = 3 * _decay(text, end) * np.array(world.PLAIN) + 5 * _decay(bought, end) * np.array(world.OUTDOOR)
    profile = world.profile_of([text, bought])
    assert profile["embedding"] == pytest.approx(_unit(both), abs=1e-6)
    assert profile["text_vector"] == pytest.approx(world.PLAIN)
    only_text, only_item = world.profile_of([text]), world.profile_of([bought])
    assert only_text["embedding"] == pytest.approx(world.PLAIN)
    assert only_item["embedding"] == pytest.approx(world.OUTDOOR)
    assert only_item["text_vector"] is None
    nothing = world.profile_of([review(5.0, "x1"), {**review(), "kind": "return"}])
    assert nothing["embedding"] is nothing["text_vector"] is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.integers(-320, 300))
def test_a_vector_of_any_length_becomes_one_or_stays_zero(numbers: list[float], exponent: int) -> None:
    vectors = np.array([numbers]) * 10.0**exponent
    length = np.linalg.norm(unit(vectors))
    assert length == pytest.approx(1.0) if vectors.any() else length == 0


def test_mean_fusion_of_nobody_and_of_nothing() -> None:
    assert mean_fusion(np.zeros((0, 4)), np.zeros((0, 4)), np.zeros((0, 2))).shape == (0, 4)
    assert not mean_fusion(np.zeros((1, 4)), np.zeros((1, 4)), np.zeros((1, 2))).any()


# ---- decay


def _finite(value: Any) -> bool:
    return "NaN" not in (text := json.dumps(value, default=str)) and "Infinity" not in text


def test_shares_do_not_change_as_time_goes_by() -> None:
    rows = [review(4.0, "g1", text="fine guitar", vector=world.GUITAR), review(1.0, "咖啡1", day=40)]
    early, late = (world.profile_of(rows, as_of=dt.datetime(year, 4, 1, tzinfo=dt.UTC)) for year in (2024, 2034))
    assert late.pop("recency_days") - early.pop("recency_days") == 3652
    assert late.pop("as_of") > early.pop("as_of")
    assert early == late


@pytest.mark.parametrize(
    ("half_life", "period"), [(0.5, "month"), (0.5, "year"), (90.0, "week"), (10_000.0, "quarter")]
)
def test_rows_ten_years_apart_never_divide_by_nothing(half_life: float, period: str) -> None:
    old = review(1.0, "g1", text="Old Fender guitar", vector=world.GUITAR, price=10.0)
    old["ts"] = dt.datetime(2014, 1, 1, tzinfo=dt.UTC)
    new = {**review(), "kind": "view", "item_id": "咖啡1"}
    for rows in ([old], [old, new], [{**old, "kind": "purchase", "text": None, "vector": None, "rating": None}, new]):
        profile = world.profile_of(rows, half_life_days=half_life, period=period)
        assert _finite(profile)
        for name in ("embedding", "text_vector"):
            if profile[name] is not None:
                assert np.linalg.norm(profile[name]) == pytest.approx(1, abs=1e-6)
    alone = world.profile_of(
        [old], half_life_days=half_life, period=period, as_of=dt.datetime(2030, 1, 7, tzinfo=dt.UTC)
    )
    assert alone["sentiment"]["negative"] == 1
    assert alone["embedding"] == pytest.approx(world.GUITAR)
    assert alone["categories"][0]["share"] == 1


def test_a_user_without_a_catalogue_is_known_by_what_they_wrote() -> None:
    profile = world.profile_of([review(5.0, text="Fender!", vector=world.GUITAR)], items=Items.none(world.WIDTH))
    assert [(t["tag"], t["source"], t["items"]) for t in profile["tags"]] == [
        ("guitar", "zero-shot", 1),
        ("music", "zero-shot", 1),
    ]
    assert profile["categories"] == profile["brands"] == []

"""What the simulated customers write: clauses about the product, the shop and their own life, never a label.

Every clause stands in one flat bank per form (as written, and capitalised); a review is up to four picks from it, so
a hundred thousand reviews are a few gathers and one concatenation. Legend: P reviews, K clause slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ray_profile.sources.simulate_behaviour import DAY, Catalogue, Customers, Flags, Floats, Ints, Log, Words, hours

SLOTS = 4
GOOD, BAD, NEUTRAL = range(3)
DOMAINS = ("example.com", "mail.example.org", "example.net")
NAMES = ("anna", "tom", "li.wei", "zhang", "maria", "sam", "xiaoyu", "peter")


@dataclass(frozen=True)
class Bank:
    """All clauses end to end; a group's are at `offset[language, group]`, `size` of them."""

    clauses: pl.Series
    offset: Ints  # (2 languages, groups)
    size: Ints  # (2 languages, groups)

    def pick(self, rng: np.random.Generator, language: Ints, group: Ints) -> Ints:
        """One clause's position for each (language, group)."""
        size = self.size[language, group]
        return self.offset[language, group] + np.floor(rng.random(size.shape) * size).astype(np.int64)


@dataclass(frozen=True)
class Plan:
    """Which clauses make each review: positions in the bank, their side, and whether the slot is used at all."""

    language: Ints
    pick: Ints  # (P, K)
    side: Ints  # (P, K)
    used: Flags  # (P, K)


@dataclass(frozen=True)
class Reviews:
    """One entry a review, unsorted. `personal` holds the e-mail or telephone number a review gives away, else ''."""

    customer: Ints
    item: Ints
    seconds: Floats
    joy: Floats
    stars: Ints
    title: pl.Series
    text: pl.Series
    personal: pl.Series
    theme: Ints  # index of the theme that the text speaks of, or -1


def bank(groups_L: list[list[list[str]]]) -> Bank:
    """Lay the groups of both languages end to end."""
    size_LG = np.array([[len(group) for group in groups] for groups in groups_L], dtype=np.int64)
    offset_LG = (np.cumsum(size_LG.ravel()) - size_LG.ravel()).reshape(size_LG.shape)
    return Bank(pl.Series([text for groups in groups_L for group in groups for text in group]), offset_LG, size_LG)


def write(
    rng: np.random.Generator, shop: Words, people: Customers, goods: Catalogue, bought: Log, joy: Floats, days: int
) -> Reviews:
    """Reviews of some purchases (the stronger the feeling, the likelier), within four weeks, at a habitual hour."""
    chosen = ~bought.anonymous & (rng.random(len(joy)) < 0.45 + 0.3 * np.abs(joy))
    day = np.floor(bought.seconds / DAY) + rng.integers(2, 28, len(joy))
    seconds = (day * DAY + np.floor(hours(rng, people.peak[bought.customer]) * 3600)).astype(np.float64)
    chosen &= seconds < np.minimum(people.leave[bought.customer], days) * DAY
    bought, joy, seconds = bought.take(chosen), joy[chosen], seconds[chosen]
    language = people.language[bought.customer]
    stars = np.digitize(joy, [-0.5, -0.15, 0.15, 0.5]) + 1
    stars = np.where(rng.random(len(joy)) < 0.04, 6 - stars, stars)  # some people hold the scale upside down
    text, spoken = _texts(rng, shop, language, bought.interest, joy, people.theme[bought.customer])
    frame = _dress(rng, shop, language, stars, text)
    frame = _fill(rng, shop, goods, bought.item, frame)
    title, text, personal = (frame[name] for name in ("title", "text", "personal"))
    return Reviews(bought.customer, bought.item, seconds, joy, stars, title, text, personal, spoken)


def _texts(
    rng: np.random.Generator, shop: Words, language: Ints, interest: Ints, joy: Floats, theme: Ints
) -> tuple[pl.Series, Ints]:
    """Compose the texts: 8 % are a word or two, 2 % empty. Also says which theme each one speaks of (-1: none)."""
    interests, generic = shop["interests"], shop["generic"]
    sides = [[list(fact[side][code]) for fact in interests for side in ("good", "bad")] for code in (0, 1)]
    shared = [[generic[side][code] for side in ("good", "bad", "neutral")] for code in (0, 1)]
    themes = [[fact["clauses"][code] for fact in shop["themes"]] for code in (0, 1)]
    clauses = bank([sides[code] + shared[code] + themes[code] for code in (0, 1)])
    reviews, first_shared = len(joy), 2 * len(interests)
    draw_PK = rng.random((reviews, SLOTS))
    positive_PK = draw_PK < np.clip(0.5 + 0.8 * joy, 0.03, 0.97)[:, None]
    side_PK = np.where(rng.random((reviews, SLOTS)) < 0.12, NEUTRAL, np.where(positive_PK, GOOD, BAD))
    own_PK = (rng.random((reviews, SLOTS)) < 0.6) & (side_PK != NEUTRAL)
    group_PK = np.where(own_PK, 2 * interest[:, None] + side_PK, first_shared + side_PK)
    used_PK = np.arange(SLOTS) < rng.choice([1, 2, 3, 4], reviews, p=[0.2, 0.35, 0.3, 0.15])[:, None]
    speaks = (theme >= 0) & (rng.random(reviews) < 0.45) & used_PK[:, 1]
    group_PK[speaks, 1] = first_shared + 3 + theme[speaks]
    side_PK[speaks, 1] = NEUTRAL
    pick_PK = clauses.pick(rng, np.repeat(language[:, None], SLOTS, axis=1), group_PK)
    for slot in range(1, SLOTS):  # nobody says the same thing twice in one review
        used_PK[:, slot] &= (pick_PK[:, :slot] != pick_PK[:, slot : slot + 1]).all(axis=1)
    text = _join(rng, generic["however"], clauses.clauses, Plan(language, pick_PK, side_PK, used_PK))
    words = bank(generic["short"])
    brief = words.clauses.gather(words.pick(rng, language, np.digitize(joy, [-0.15, 0.3])))
    fate = rng.random(reviews)
    is_brief, is_empty = pl.Series((fate >= 0.02) & (fate < 0.1)), pl.Series(fate < 0.02)
    text = pl.Series([""]).new_from_index(0, reviews).zip_with(is_empty, text)
    text = brief.zip_with(is_brief, text).alias("text")
    return text, np.where(speaks & (fate >= 0.1), theme, -1)


def _join(rng: np.random.Generator, however: list[str], clauses: pl.Series, plan: Plan) -> pl.Series:
    """Clauses to sentences: a turn of feeling is a "but", other clauses are a new sentence or follow a comma."""
    capital = pl.concat([clauses, clauses.str.slice(0, 1).str.to_uppercase() + clauses.str.slice(1)])
    english = plan.language == 0
    parts: dict[str, pl.Series] = {}
    blank = pl.Series([""]).new_from_index(0, len(english))
    last_side = plan.side[:, 0]
    for slot in range(SLOTS):
        side, used = plan.side[:, slot], plan.used[:, slot]
        turn = (side != last_side) & (side != NEUTRAL) & (last_side != NEUTRAL)
        comma = turn | (rng.random(len(side)) < np.where(english, 0.15, 0.75))
        start = (slot == 0) | ~comma
        stop = np.where(english, np.where(comma, ", ", ". "), np.where(comma, "，", "。"))
        link = np.where(turn, np.where(english, however[0], however[1]), np.where(english & comma, "and ", ""))
        lead = np.full(len(side), "", dtype=stop.dtype) if slot == 0 else np.char.add(stop, link)
        piece = pl.Series(lead) + capital.gather(plan.pick[:, slot] + np.where(start, len(clauses), 0))
        parts[str(slot)] = piece.zip_with(pl.Series(used), blank)
        last_side = np.where(used, side, last_side)
    end = rng.choice(3, len(english), p=[0.8, 0.12, 0.08])
    parts["end"] = pl.Series(np.array([[".", "!!!", ""], ["。", "！！", ""]])[plan.language, end])
    return pl.DataFrame(parts).select(pl.concat_str(pl.all()).alias("text"))["text"]


def _personal(rng: np.random.Generator, language: Ints) -> pl.Series:
    """An e-mail address or a telephone number for 2.5 % of the reviews, from ranges that reach nobody."""
    found = [""] * len(language)
    for row in np.flatnonzero(rng.random(len(language)) < 0.025):
        number = int(rng.integers(0, 10_000))
        phone = f"1300000{number:04d}" if language[row] else f"+44 20 7946 0{number % 1000:03d}"
        email = f"{NAMES[number % len(NAMES)]}{number}@{DOMAINS[number % len(DOMAINS)]}"
        found[row] = email if rng.random() < 0.5 else phone
    return pl.Series(found, dtype=pl.String)


def _dress(rng: np.random.Generator, shop: Words, language: Ints, stars: Ints, text: pl.Series) -> pl.DataFrame:
    """Add a title that fits the stars and, to a few texts, a sentence with personal data."""
    personal = _personal(rng, language)
    sentences = bank([[group] for group in shop["generic"]["personal"]])
    which = sentences.offset[language, 0] + personal.str.contains("@", literal=True).not_().to_numpy()
    mood = np.digitize(stars, [3, 4])
    titles = bank(shop["generic"]["titles"])
    frame = pl.DataFrame({"text": text, "personal": personal, "language": language}).with_columns(
        title=titles.clauses.gather(titles.pick(rng, language, mood)), sentence=sentences.clauses.gather(which)
    )
    given = (pl.col("personal") != "") & (pl.col("text") != "")
    pause = pl.when(pl.col("language") == 0).then(pl.lit(" ")).otherwise(pl.lit(""))
    return frame.with_columns(
        text=pl.when(given).then(pl.concat_str("text", pause, "sentence")).otherwise("text"),
        personal=pl.when(given).then("personal").otherwise(pl.lit("")),
        title=pl.when(pl.col("text") == "").then(pl.lit("")).otherwise("title"),
    )


def _fill(rng: np.random.Generator, shop: Words, goods: Catalogue, item: Ints, frame: pl.DataFrame) -> pl.DataFrame:
    """Put the product, brand, a span of time, a person and the personal data where a clause names them."""
    language = frame["language"].to_numpy()
    draw = {"time": bank([[group] for group in shop["generic"]["times"]])}
    draw["person"] = bank([[group] for group in shop["generic"]["people"]])
    none = np.zeros(len(language), np.int64)
    frame = frame.with_columns(
        goods.frame["noun"].gather(item).alias("item"),
        goods.frame["brand"].gather(item),
        *(words.clauses.gather(words.pick(rng, language, none)).alias(name) for name, words in draw.items()),
        email=pl.col("personal"),
        phone=pl.col("personal"),
    )
    text = pl.col("text")
    for name in ("item", "brand", "time", "person", "email", "phone"):
        text = text.str.replace_all("{" + name + "}", pl.col(name), literal=True)
    return frame.with_columns(text)

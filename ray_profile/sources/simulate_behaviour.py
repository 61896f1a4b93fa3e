"""The simulated shop's catalogue, customers and clicks. Pure functions of a random generator; times are local seconds.

Legend: N customers, I interests, S sessions, R rows, P purchases. Languages are 0 (English) and 1 (Chinese); every
product is listed once in each language's storefront, and a customer shops in one of them.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

DAY = 86_400
VIEW, FAVOURITE, CART, PURCHASE, SEARCH = range(5)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Words = dict[str, Any]

#: How busy the shop is by local hour, for the quarter of visits that follow no habit.
BUSY = np.array([2, 1, 1, 1, 1, 2, 3, 4, 5, 6, 6, 6, 7, 6, 5, 5, 6, 7, 8, 9, 9, 8, 6, 4], dtype=np.float64)
BRAND_PRICE = np.array([0.5, 0.9, 1.5, 2.6])
NOUN_PRICE = np.array([1.2, 1.0, 0.8])


@dataclass(frozen=True)
class Catalogue:
    """`frame` has one row a listing; `shelf` gives the row of the k-th cheapest listing of an interest."""

    frame: pl.DataFrame
    shelf: Ints  # (2 languages, I, listings)
    price: Floats
    quality: Floats


@dataclass(frozen=True)
class Customers:
    """What is planted, one entry (or row) a customer. Days count from the first day of the log."""

    ids: npt.NDArray[np.str_]
    language: Ints
    price_level: Floats  # 0 buys the cheapest, 1 the dearest
    stance: Ints  # (N, I) 1 likes, 0 indifferent, -1 tried it and dislikes it
    taste: Floats  # (N, I) share of visits, rows sum to 1
    theme: Ints  # index of a theme, or -1
    mood: Floats
    peak: Floats  # local hour of most visits
    weekend: Flags
    join: Floats
    leave: Floats
    churned: Flags
    mobile: Floats
    place: Ints
    visits: Ints


@dataclass(frozen=True)
class Log:
    """Rows of sessions, unsorted. `item` is -1 for a search; the session names a purchase's order."""

    customer: Ints
    session: Ints
    seconds: Floats
    kind: Ints
    interest: Ints
    item: Ints
    quantity: Ints
    price: Floats
    anonymous: Flags
    device: Ints

    def take(self, rows: Ints | Flags) -> Log:
        """The rows at these positions, or where the mask holds."""
        return Log(**{name: column[rows] for name, column in vars(self).items()})

    def plus(self, other: Log) -> Log:
        """These rows, then the other's."""
        return Log(**{name: np.concatenate([column, getattr(other, name)]) for name, column in vars(self).items()})


def words() -> Words:
    """The vocabulary that ships beside this module."""
    return tomllib.loads(resources.files(__package__).joinpath("simulate.toml").read_text(encoding="utf-8"))


def codes(rng: np.random.Generator, prefix: str, count: int, length: int) -> npt.NDArray[np.str_]:
    """`count` distinct random codes: the prefix, then `length` capital letters and digits."""
    letters = np.array(list("ABCDEFGHJKLMNPQRSTUVWXYZ23456789"))
    found = np.unique(letters[rng.integers(0, len(letters), (count + 64, length))].view(f"<U{length}").ravel())
    assert len(found) >= count, "codes of this length are too short to be distinct"
    chosen: npt.NDArray[np.str_] = np.char.add(prefix, rng.permutation(found)[:count])
    return chosen


def catalogue(rng: np.random.Generator, shop: Words) -> Catalogue:
    """Every interest sells brands x products, each listed in both languages at the same price."""
    rows: list[dict[str, Any]] = []
    for interest, facts in enumerate(shop["interests"]):
        for brand, name in enumerate(facts["brands"]):
            for noun in range(len(facts["nouns"][0])):
                line = int(rng.integers(0, 3))
                price = facts["price"] * BRAND_PRICE[brand] * NOUN_PRICE[noun] * rng.uniform(0.93, 1.07)
                for language in (0, 1):
                    label, item = shop["generic"]["lines"][language][line], facts["nouns"][language][noun]
                    value = facts["attributes"][language][noun]
                    title = f"{name} {label} {item}, {value}" if language == 0 else f"{name}{label}{item} {value}"
                    row = {"interest": interest, "language": language, "title": title, "brand": name, "noun": item}
                    row |= {"category": facts["category"][language], "price": round(price, 2), "attributes": [value]}
                    rows.append(row)
    frame = pl.DataFrame(rows).with_columns(pl.Series("item_id", codes(rng, "B0", len(rows), 8)))
    shelf = (
        frame.with_row_index("row")
        .sort("language", "interest", "price", "row")
        .get_column("row")
        .to_numpy()
        .reshape(2, len(shop["interests"]), -1)
        .astype(np.int64)
    )
    return Catalogue(frame, shelf, frame["price"].to_numpy(), rng.normal(0, 0.2, frame.height))


def customers(rng: np.random.Generator, shop: Words, count: int, days: int) -> Customers:
    """Plant tastes, language, purse, hours, mood and churn; activity is Zipf-like (rank to the power -0.7)."""
    interests = len(shop["interests"])
    order_NI = rng.random((count, interests)).argsort(axis=1)
    liked = rng.integers(2, 5, count)[:, None]
    disliked = rng.choice([0, 1, 2], count, p=[0.35, 0.45, 0.2])[:, None]
    stance_NI = np.where(order_NI < liked, 1, np.where(order_NI >= interests - disliked, -1, 0))
    weight_NI = rng.gamma(4.0, 1.0, (count, interests))
    weight_NI *= np.select([stance_NI == 1, stance_NI == -1], [1.0, 0.35], 0.06)
    join = np.where(rng.random(count) < 0.6, 0.0, rng.uniform(0, 0.6 * days, count))
    churned = rng.random(count) < 0.2
    leave = np.where(churned, join + rng.uniform(0.25, 0.65, count) * (days - join), float(days))
    share = (np.arange(count) + 1.0) ** -0.7
    expected = rng.permutation(share / share.sum()) * count * days / 10 * (leave - join) / days
    language = (rng.random(count) < 1 / 3).astype(np.int64)
    return Customers(
        ids=codes(rng, "AE", count, 12),
        language=language,
        price_level=rng.random(count),
        stance=stance_NI,
        taste=weight_NI / weight_NI.sum(axis=1, keepdims=True),
        theme=np.where(rng.random(count) < 0.4, rng.integers(0, len(shop["themes"]), count), -1),
        mood=rng.normal(0.25, 0.3, count),
        peak=rng.choice([7, 8, 12, 13, 17, 19, 20, 21, 22, 23], count) + 0.5,
        weekend=rng.random(count) < 0.25,
        join=join,
        leave=leave,
        churned=churned,
        mobile=rng.beta(4, 2, count),
        place=rng.integers(0, len(shop["generic"]["places"][0]), count),
        visits=1 + rng.poisson(expected),
    )


def hours(rng: np.random.Generator, peak: Floats) -> Floats:
    """A local time of day in hours for each peak: three of four near the habit, the rest when the shop is busy."""
    habit = (peak + rng.normal(0, 1.0, len(peak))) % 24
    other = rng.choice(24, len(peak), p=BUSY / BUSY.sum()) + rng.random(len(peak))
    return np.where(rng.random(len(peak)) < 0.75, habit, other)


def shelf_pick(rng: np.random.Generator, people: Customers, goods: Catalogue, who: Ints, interest: Ints) -> Ints:
    """A listing near each customer's price level, from their own storefront."""
    last = goods.shelf.shape[2] - 1
    rank = np.rint(people.price_level[who] * last + rng.normal(0, 1.5, len(who))).clip(0, last).astype(np.int64)
    picked: Ints = goods.shelf[people.language[who], interest, rank]
    return picked


def draw_interest(rng: np.random.Generator, people: Customers, who: Ints) -> Ints:
    """One interest for each entry of `who`, by that customer's taste."""
    edges_RI = people.taste.cumsum(axis=1)[who]
    drawn: Ints = (edges_RI < rng.random(len(who))[:, None]).sum(axis=1).clip(0, edges_RI.shape[1] - 1)
    return drawn


def _kinds(rng: np.random.Generator, first: Flags) -> Ints:
    """What each row of a session is: a search or a view first, then views, favourites and carts."""
    draw = rng.random(len(first))
    kind = np.where(draw < 0.68, VIEW, np.where(draw < 0.76, FAVOURITE, CART))
    kind[first] = np.where(draw[first] < 0.3, SEARCH, VIEW)
    kind[np.flatnonzero(kind[:-1] == SEARCH) + 1] = VIEW  # a cart needs something seen before it
    return kind


def _visits(rng: np.random.Generator, people: Customers, first_weekday: int) -> tuple[Ints, Floats]:
    """Who comes and when (seconds), one entry a session."""
    who_S = np.repeat(np.arange(len(people.ids)), people.visits)
    day_S = np.floor(people.join[who_S] + rng.random(len(who_S)) * (people.leave - people.join)[who_S])
    shift = 5 - (day_S + first_weekday) % 7
    moved = people.weekend[who_S] & (rng.random(len(who_S)) < 0.6) & (day_S + shift >= people.join[who_S])
    return who_S, np.where(moved, day_S + shift, day_S) * DAY + np.floor(hours(rng, people.peak[who_S]) * 3600)


def browse(rng: np.random.Generator, people: Customers, goods: Catalogue, days: int, first_weekday: int) -> Log:
    """Searches, views, favourites and carts: sessions with lognormal gaps of about 45 seconds."""
    who_S, start_S = _visits(rng, people, first_weekday)
    length_S = rng.geometric(0.26, len(who_S)).clip(1, 25)
    session = np.repeat(np.arange(len(who_S)), length_S)
    first = np.cumsum(length_S) - length_S
    position = np.arange(len(session)) - first[session]
    elapsed = np.cumsum(np.where(position == 0, 0.0, rng.lognormal(3.8, 0.8, len(session)).clip(2, 1500)))
    seconds = start_S[session] + np.floor(elapsed - elapsed[first][session])
    kind = _kinds(rng, position == 0)
    who = who_S[session]
    interest = draw_interest(rng, people, who_S)[session]
    stray = (kind == VIEW) & (rng.random(len(session)) < 0.12)
    interest[stray] = draw_interest(rng, people, who[stray])
    seen = np.maximum.accumulate(np.where(kind == VIEW, np.arange(len(session)), 0))  # what a cart or favourite is of
    interest = np.where((kind == FAVOURITE) | (kind == CART), interest[seen], interest)
    item = shelf_pick(rng, people, goods, who, interest)[seen]
    rows = len(session)
    log = Log(
        customer=who,
        session=session,
        seconds=seconds,
        kind=kind,
        interest=interest,
        item=np.where(kind == SEARCH, -1, item),
        quantity=np.ones(rows, np.int64),
        price=goods.price[item],
        anonymous=(rng.random(len(who_S)) < 0.06)[session],
        device=(rng.random(len(who_S)) > people.mobile[who_S]).astype(np.int64)[session],
    )
    return log.take(seconds < np.minimum(people.leave[who], days) * DAY)


def purchases(rng: np.random.Generator, people: Customers, log: Log, days: int) -> Log:
    """Somewhat more than half of what lies in a cart is bought when the session ends; one in ten at a discount."""
    bought = log.take((log.kind == CART) & (rng.random(len(log.kind)) < 0.55))
    last = np.zeros(int(log.session.max(initial=0)) + 1)
    np.maximum.at(last, log.session, log.seconds)
    count = len(bought.kind)
    discount = np.where(rng.random(count) < 0.1, 0.9, 1.0)
    changed = {
        "seconds": last[bought.session] + 30 + bought.session % 90,
        "kind": np.full(count, PURCHASE),
        "quantity": rng.choice([1, 2, 3], count, p=[0.9, 0.07, 0.03]),
        "price": np.round(bought.price * discount, 2),
    }
    bought = Log(**vars(bought) | changed)
    return bought.take(bought.seconds < np.minimum(people.leave[bought.customer], days) * DAY)


def satisfaction(rng: np.random.Generator, people: Customers, goods: Catalogue, bought: Log) -> Floats:
    """How each purchase turned out, -1 to 1: the customer's mood, their stance, the item's quality and chance."""
    stance = people.stance[bought.customer, bought.interest]
    lift = np.select([stance == 1, stance == -1], [0.35, -0.95], 0.0)
    noise = rng.normal(0, 0.25, len(stance))
    joy: Floats = (people.mood[bought.customer] + lift + goods.quality[bought.item] + noise).clip(-1, 1)
    return joy


def returns(rng: np.random.Generator, people: Customers, bought: Log, joy: Floats, days: int) -> Log:
    """What is sent back within three weeks: a purchase row with a negative quantity and the same order."""
    back = rng.random(len(joy)) < np.where(joy < -0.3, 0.35, 0.03)
    rows = bought.take(back)
    when = rows.seconds + np.floor(rng.uniform(3, 20, len(rows.kind)) * DAY)
    rows = Log(**vars(rows) | {"seconds": when, "quantity": -rows.quantity})
    return rows.take(when < np.minimum(people.leave[rows.customer], days) * DAY)

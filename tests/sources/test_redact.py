"""What `redact` promises: personal data goes, product text stays, and user ids become what HMAC-SHA256 says."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import iban, luhn
from stdnum.cn import ric

from ray_profile.sources.redact import bucket_of, fingerprint, pseudonym, pseudonyms, redact


def one(text: str | None) -> str | None:
    result: str | None = redact(pl.Series("text", [text], dtype=pl.String)).item()
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail john.o'neil+shop@mail.example.co.uk.", "mail <EMAIL>."),
        ("邮箱是zhang_san@qq.com欢迎交流", "邮箱是<EMAIL>欢迎交流"),
        ("jörg@müller.de", "<EMAIL>"),
        ("我的手机13812345678请联系", "我的手机<PHONE>请联系"),
        ("手机138-1234-5678,或+86 138 1234 5678", "手机<PHONE>,或<PHONE>"),
        ("tel8613812345678", "tel<PHONE>"),
        ("１３８－１２３４－５６７８ ａ＠ｂ．com", "<PHONE> <EMAIL>"),
        ("电话010-51236699转3037,0755 83456789", "电话<PHONE>,<PHONE>"),
        ("客服400-820-8820", "客服<PHONE>"),
        ("call (415) 555-2671 or 415.555.2671 x12", "call <PHONE> or <PHONE>"),
        ("905-674-3793/541-714-1388", "<PHONE>/<PHONE>"),
        ("+46 (0)8 928 571 38, 0049 30 1234567", "<PHONE>, <PHONE>"),
        ("03.93.92.16.85 and 07700 063 966", "<PHONE> and <PHONE>"),
        ("20 13812345678 2", "20 <PHONE> 2"),
        ("Phone: 467 3395", "Phone: <PHONE>"),
        ("card 4111 1111 1111 1111 12/25", "card <CARD> 12/25"),
        ("卡号6222021234567890128。", "卡号<CARD>。"),
        ("3782-822463-10005", "<CARD>"),
        ("IBAN GB82 WEST 1234 5698 7654 32 please", "IBAN <IBAN> please"),
        ("付到DE89370400440532013000谢谢", "付到<IBAN>谢谢"),
        ("身份证11010519491231002X，", "身份证<CN_ID>，"),
        ("110105 19491231 002x", "<CN_ID>"),
        ("身份证号:130503670401001", "身份证号:<CN_ID>"),
        ("from 192.168.1.10 and 2001:db8::8a2e:370:7334", "from <IP> and <IP>"),
        ("my ssn is 536-90-4399", "my ssn is <SSN>"),
        ("加QQ：383161223吧", "加QQ：<QQ>吧"),
        ("https://bob:pa55@shop.com/x?id=3&token=a1b2c3d4", "https://<SECRET>@shop.com/x?id=3&token=<SECRET>"),
        ("手机/微信：13800138000", "手机/微信：<PHONE>"),
        ("电话/13900139000，联系方式/13900139000", "电话/<PHONE>，联系方式/<PHONE>"),
        ("13800138000/13900139000", "<PHONE>/<PHONE>"),
        ("AT&T 4155552671, R&D 13900139000", "AT&T <PHONE>, R&D <PHONE>"),
        ("phone/4155552671 or mobile=13900139000", "phone/<PHONE> or mobile=<PHONE>"),
        ("my model friend 13900139000 and 4155552671", "my model friend <PHONE> and <PHONE>"),
        ("my order 13900139000, 会员编号13900139000", "my order <PHONE>, 会员编号<PHONE>"),
        ("I mean 13900139000, 下单号码13900139000", "I mean <PHONE>, 下单号码<PHONE>"),
        ("官网http://shop.cn/a看我13900139000", "官网http://shop.cn/a看我<PHONE>"),
        ("www.shop.com:13900139000 https://wa.me/8613900139000", "www.shop.com:<PHONE> https://wa.me/<PHONE>"),
        ("https://im.cn/send?phone=8613900139000&x=1", "https://im.cn/send?phone=<PHONE>&x=1"),
        ("tel_4155552671 电话/wx/qq/13900139000", "tel_<PHONE> 电话/wx/qq/<PHONE>"),
    ],
)
def test_personal_data_goes(text: str, expected: str) -> None:
    assert one(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "10,000 mAh, 5-string, 4.5/5 stars, size 38-27-35, 1920x1080, $1,299.00-1,499.00",
        "ISBN 978-0-306-40615-7, ISBN: 0306406152, EAN 4006381333931, ASIN B000123456",
        "bought 2014-01-15, 01/15/2014, 2008-2009, 20140115 and 2014.01.15-2014.02.15",
        "strings .010-.013-.017-.026 or 010 013 017 026 036 046, part 073-3150-406",
        "firmware v1.2.3.44, version 2.21.21.1, at 12:30:45",
        "sizes 1 3 5 7 9 11 13 15; 150 200 300 40; 100 200 300 400 500 600",
        "2010 2011 2012 2013",
        "京东5000-200券,订单号:12235689503,666666666666,1.8.8.8",
        "thanks @Jing2003, $5@each, cr@p, pretty bad@$$, 80Hz @ 7.50",
        "http://www.amazon.com/dp/B0002E1G5C/ref=sr_1_1?ie=UTF8&qid=1357294837&sr=8-1",
        "http://wuyilala.com/index.php/2009/06/09/14/08/03/",
        "American Made Trucks F150 2004-2008, Tractor 670 770 870 970 1070, National N223-347 3200BC",
        "iPhone 4 5 6 7 8 9 10, 型号 JCM800 2203KK, 1:200万像素",
        "https://item.shop.com/item.htm?id=4155552671&b=13912345678, item.shop.cn/13912345678.html",
        "?id=4155552671, IMG_13912345678.jpg, /gp/product/4155552671 and /data/img/13912345678.png",
        "order 4155552671, item no. 4155552671, 编号：4155552671, 订单号：19512345678, tracking number 13912345678",
    ],
)
def test_product_text_stays(text: str) -> None:
    assert one(text) == text


def test_shape_name_nulls_and_input_are_kept() -> None:
    raw = pl.Series("review", [None, "", "a@b.com", "好"])
    result = redact(raw)
    assert (result.name, result.dtype, result.to_list()) == ("review", pl.String(), [None, "", "<EMAIL>", "好"])
    assert raw.to_list() == [None, "", "a@b.com", "好"]
    assert redact(pl.Series("review", [], dtype=pl.String)).to_list() == []
    assert redact(pl.Series("review", [None])).to_list() == [None]


digits = st.characters(categories=["Nd"])
noise = st.text(
    alphabet=st.one_of(st.sampled_from("0123456789 .-/()+@:xX电话a"), digits, st.characters(codec="utf-8")), max_size=80
)


@given(noise)
@settings(deadline=None, max_examples=500)
def test_idempotent(text: str) -> None:
    first = one(text)
    assert one(first) == first


@given(
    st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Nd"], exclude_characters="@＠﹫"), max_size=80)
)
@settings(deadline=None)
def test_text_without_digits_and_at_is_unchanged(text: str) -> None:
    assert one(text) == text


around = st.one_of(
    st.text(alphabet="的手机请联系我好不,。!", max_size=20),
    st.text(alphabet="abcdefgh ,!?", max_size=20).map(lambda text: f" {text} "),
)


def luhn_card(body: str) -> str:
    return body + luhn.calc_check_digit(body)


def identity(parts: tuple[str, str, str]) -> str:
    number = "".join(parts) + "0"
    return number[:-1] + ric.calc_check_digit(number)


def account(parts: tuple[str, str]) -> str:
    number = f"GB00{parts[0]}{parts[1]}"
    return f"GB{iban.calc_check_digits(number)}{number[4:]}"


def n_digits(n: int) -> st.SearchStrategy[str]:
    return st.text(alphabet="0123456789", min_size=n, max_size=n)


mobiles = st.tuples(st.sampled_from("3456789"), n_digits(9)).map("".join).map(lambda rest: f"1{rest}")
personal = st.one_of(
    st.tuples(
        st.text(alphabet="abcdz09", min_size=1, max_size=12), st.sampled_from(["qq.com", "mail.example.org"])
    ).map("@".join),
    mobiles,
    mobiles.map(lambda number: f"{number[:3]}-{number[3:7]}-{number[7:]}"),
    mobiles.map(lambda number: f"+86 {number[:3]} {number[3:7]} {number[7:]}"),
    n_digits(14).map(lambda body: luhn_card(f"4{body}")),
    n_digits(14).map(lambda body: luhn_card(f"4{body}")).map(lambda c: " ".join(c[i : i + 4] for i in range(0, 16, 4))),
    st.tuples(
        st.sampled_from(["110105", "440301"]),
        st.dates(date(1900, 1, 1), date(2029, 12, 31)).map(lambda d: f"{d:%Y%m%d}"),
        n_digits(3),
    ).map(identity),
    st.tuples(st.text(alphabet="ABCXYZ", min_size=4, max_size=4), n_digits(14)).map(account),
    st.tuples(st.integers(201, 989), st.integers(200, 999), n_digits(4)).map(lambda p: f"({p[0]}) {p[1]}-{p[2]}"),
    st.tuples(*[st.integers(10, 255)] * 4).map(lambda octets: ".".join(map(str, octets))),
)


@given(around, personal, around)
@settings(deadline=None, max_examples=500)
def test_personal_data_in_any_text_is_removed(before: str, secret: str, after: str) -> None:
    result = one(before + secret + after)
    assert result is not None
    assert secret not in result
    assert not any(character.isdigit() for character in result)
    assert result.startswith(before.rstrip("abcdefgh"))
    assert result.endswith(after)


@pytest.mark.parametrize(
    "piece",
    [
        *("1", "a", "1-", "13812345678.", "+4930123456", "a@b.co"),
        *("GB82WEST12345698765432 ", "GB82", "10.20.30.40.", "a:", "call "),
        *("电话13812345678", "4111-1111-1111-1111-", "://a@b", "?token=a1b2c3", "isbn 9056743793 ", "a@" + "b." * 40),
        *(
            "www.13912345678",
            "a.cn/" * 40 + "13912345678 ",
            "/a" * 90 + "/13912345678;",
            "order no. " * 4 + "4155552671",
        ),
    ],
)
def test_long_text_takes_linear_time(piece: str) -> None:
    start = time.perf_counter()
    redact(pl.Series([piece * (100_000 // len(piece))]))
    assert time.perf_counter() - start < 5  # quadratic would be minutes


def test_recall_on_published_sentences(shared: Path) -> None:
    claimed = ("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "US_SSN")
    sentences = json.loads((shared / "data/presidio_pii/synth_dataset_v2.json").read_text(encoding="utf-8"))
    result = redact(pl.Series([sentence["full_text"] for sentence in sentences])).to_list()
    missed = [
        (span["entity_type"], span["entity_value"])
        for sentence, text in zip(sentences, result, strict=True)
        for span in sentence["spans"]
        if span["entity_type"] in claimed and span["entity_value"] in text
    ]
    assert missed == []


def test_real_reviews_keep_their_text(shared: Path) -> None:
    for name, column, most in (("womens_clothing", "Review Text", 0), ("amazon_musical", "reviewText", 1)):
        raw = pl.read_parquet(shared / "data" / name / "reviews.parquet")[column]
        assert redact(raw).ne_missing(raw).sum() <= most


@pytest.mark.parametrize("key", [b"0123456789abcdef", "钥匙钥匙钥匙".encode(), bytes(range(100, 200)), b"k" * 200])
def test_pseudonyms_are_hmac_sha256(key: bytes) -> None:
    users = pl.Series("user_id", ["A1", "用户", None, "", "A1", "x" * 1000])
    result = pseudonyms(users, key)
    expected = [
        None if user is None else hmac.new(key, user.encode(), hashlib.sha256).hexdigest()[:32] for user in users
    ]
    assert (result.name, result.to_list()) == ("user_id", expected)
    assert pseudonym("用户", key) == expected[1]


def test_without_a_key_ids_pass_unchanged() -> None:
    users = pl.Series("user_id", ["A1", None])
    assert pseudonyms(users, None).to_list() == ["A1", None]
    assert pseudonym("A1", None) == "A1"
    assert fingerprint(None) is None


def test_fingerprint_tells_keys_apart_and_is_no_part_of_a_pseudonym() -> None:
    first, second = fingerprint(b"k" * 16), fingerprint(b"l" * 16)
    assert first is not None
    assert second is not None
    assert (len(first), first == second, first == fingerprint(b"k" * 16)) == (16, False, True)


@given(st.lists(st.one_of(st.none(), st.text()), max_size=5), st.integers(1, 65536))
@settings(deadline=None)
def test_buckets_are_the_first_eight_bytes_of_sha256(users: list[str | None], buckets: int) -> None:
    result = bucket_of(pl.Series("user_id", users, dtype=pl.String), buckets)
    expected = [
        None if user is None else int.from_bytes(hashlib.sha256(user.encode()).digest()[:8], "big") % buckets
        for user in users
    ]
    assert result.dtype == pl.Int32
    assert result.to_list() == expected

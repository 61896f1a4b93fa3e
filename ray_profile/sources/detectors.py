"""What counts as personal data in text: one detector a kind, each a pattern and a check of what it matched.

A pattern has bounded repetition and none looks back over a neighbour of its own kind, so that time is linear in the
text. The check is a checksum (python-stdnum), a numbering plan (libphonenumber), or the words around the candidate.
Patterns are written for ASCII digits and letters; `redact` brings other forms into that shape first.

Not found: names, postal addresses, dates of birth, handles without a number ("my WeChat is ..."), numbers in words.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple

import phonenumbers
from stdnum import iban, luhn
from stdnum.cn import ric

#: What may stand between the digits of one number.
_SEP = r"[ .\-/()]"
# Not `\b`: Chinese characters are word characters, so there is no word boundary in "手机138...".
_HEAD = r"(?<![0-9])(?<![0-9][.\-])"
_TAIL = r"(?![0-9])(?![.\-][0-9])"
_EXTENSION = r"(?: ?(?:x|ext\.?|extension|转|分机) ?[0-9]{1,6}(?![0-9]))?"


class Detector(NamedTuple):
    """`accept` gets the match (group `n` is the candidate) and returns how many of its characters to remove."""

    marker: str
    pattern: re.Pattern[str]
    accept: Callable[[re.Match[str]], int]


def _whole(match: re.Match[str]) -> int:
    return len(match["n"])


def _digits(text: str) -> str:
    return re.sub("[^0-9]", "", text)


def _longest(candidate: str, valid: Callable[[str], bool]) -> int:
    """Length of the longest prefix, ending at the end of a group, that is valid; 0 if none is."""
    ends = [match.end() for match in re.finditer(r"[0-9A-Za-z]+", candidate)]
    return next((end for end in reversed(ends) if valid(candidate[:end])), 0)


def _follows(match: re.Match[str], words: re.Pattern[str]) -> bool:
    """Whether one of `words` stands right before the candidate."""
    start = match.start("n")
    return words.search(match.string, max(0, start - 30), start) is not None


_SAID = r"(?:[ \-]?(?:numbers?|num|no\.?|nr\.?|id|号码|编号|号|码))"
_RIGHT_BEFORE = r"(?:[ \-]?(?:is|was|是|为))?[ :.#(\-]{0,3}$"
_OF_GOODS = r"(?:(?<![a-z])(?:isbn|asin|sku|upc|ean)|(?<!下)单号|型号|货号|条码)"  # "I mean 139...", "下单号码139..."
_THINGS = r"(?:(?<![a-z])(?:model|item|order|serial|tracking)|订单)"
#: Words that announce the number right after them as no telephone's: "order 4155552671".
_CODE = re.compile(rf"(?i)(?:{_OF_GOODS}|{_THINGS}|编号){_SAID}{{0,2}}{_RIGHT_BEFORE}")
#: Those that do so even for one that looks like a Chinese mobile number: "订单号:19512345678", not "order 19512345678".
_SURE_CODE = re.compile(rf"(?i)(?:{_OF_GOODS}|{_THINGS}{_SAID}){_SAID}{{0,2}}{_RIGHT_BEFORE}")
#: What a number is glued to in a web address, in a query, in a path from the root, in a file's name.
_ADDRESS_CHARS = 200
_NO_ADDRESS = re.compile(r"[^A-Za-z0-9\-._~/?#=&;%+:]")
_IN_ADDRESS = re.compile(
    r"(?i)[a-z]://|www\.|[a-z0-9]\.(?:com|cn|net|org|edu|gov|co|io|me|info|biz|shop|store|top|cc|tv|de|fr|uk|jp|hk|tw|eu)"
    r"(?::[0-9]{1,5})?[/?]|[?&;][a-z_][a-z0-9_]*=$|[a-z0-9]_$"
)
_IN_PATH = re.compile(r"\s(?:/[A-Za-z0-9._~\-]+){2,}/$")
_PHONE_FIELD = re.compile(r"(?i)(?:phone|tel|mobile|cell|whatsapp|wechat|weixin|wx|wa\.me)[/=_:]$")


def _in_address(match: re.Match[str]) -> bool:
    """Whether the candidate is part of an address or a file's name, and not as a field called "phone" or the like."""
    start = match.start("n")
    before = " " + match.string[max(0, start - _ADDRESS_CHARS) : start]
    glued = _NO_ADDRESS.split(before)[-1]
    found = _IN_ADDRESS.search(glued) or _IN_PATH.search(before)
    return bool(found) and not glued.endswith(":") and not _PHONE_FIELD.search(glued)


_VERSION = re.compile(r"(?i)(?:\bv|version|firmware|driver|release|build|版本|固件|系统)[^0-9]{0,10}$")
_ADDRESS = re.compile(r"(?i)(?:\bip|address|host|server|地址|服务器)[^0-9]{0,10}$")


def _is_iban(text: str) -> bool:
    return bool(iban.is_valid(text, check_country=False))


def _is_cn_id(match: re.Match[str]) -> int:
    number = _digits(match["n"][:-1]) + match["n"][-1].upper()
    if ric.calc_check_digit(number) != number[-1]:
        return 0
    try:
        ric.get_birth_date(number)  # not the county of birth: the table lacks dissolved counties
    except ValueError:
        return 0
    return _whole(match)


#: Ranges of card numbers, by first digits and length: Visa, Mastercard, Amex, Diners, Discover, UnionPay, JCB, Maestro,
#: Mir, Troy.
_BRAND = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|2(?:2[2-9]|[3-6][0-9]|7[01]|720)[0-9]{13}|3[47][0-9]{13}"
    r"|3(?:0[0-5]|[689][0-9])[0-9]{11,16}|6(?:011|4[4-9][0-9]|5[0-9]{2})[0-9]{12,15}|(?:62|81)[0-9]{14,17}"
    r"|35[0-9]{14,17}|(?:2131|1800)[0-9]{11}|(?:50|5[6-8]|6304|6759|676[1-3]|6390|0604)[0-9]{8,17}|220[0-4][0-9]{12,15}"
    r"|9792[0-9]{12}"
)


def _is_card(match: re.Match[str]) -> int:
    number = _digits(match["n"])
    if not luhn.is_valid(number):
        return 0
    # Unseparated, 15 digits and more are an account of some kind; shorter or grouped ones need a known range.
    bare_and_long = len(match["n"]) == len(number) >= 15 and number[0] != "0"
    return _whole(match) if bare_and_long or _BRAND.fullmatch(number) else 0


def _is_ipv6(match: re.Match[str]) -> int:
    text = match["n"]
    long_enough = text.count(":") >= 3 or re.match(r"[0-9a-fA-F]{4}:.*::|[0-9a-fA-F]{4}::", text)
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return 0
    return _whole(match) if long_enough else 0


def _is_ipv4(match: re.Match[str]) -> int:
    octets = match["n"].split(".")
    # 2.21.21.1 is a version unless the words before say otherwise; too few addresses look like that to matter.
    like_version = all(len(octet) == 1 for octet in octets) or (len(octets[0]) == 1 and max(map(len, octets)) < 3)
    if _follows(match, _VERSION) or (like_version and not _follows(match, _ADDRESS)):
        return 0
    return _whole(match)


def _possible(text: str, region: str | None = None, strict: bool = False) -> bool:
    try:
        number = phonenumbers.parse(text.replace("(0)", ""), region)
    except phonenumbers.NumberParseException:
        return False
    check = phonenumbers.is_valid_number if strict else phonenumbers.is_possible_number
    return bool(check(number))


def _is_plus(match: re.Match[str]) -> int:
    candidate = match["n"]
    return _longest(candidate, lambda text: len(_digits(text)) >= 8 and _possible(text))


def _is_double_zero(match: re.Match[str]) -> int:
    candidate = match["n"]
    grouped = len(_digits(candidate)) < len(candidate)  # bare: an EAN or an ISBN may start so too
    return _longest(candidate, lambda text: _possible("+" + text[2:], strict=not grouped))


def _is_cn_landline(match: re.Match[str]) -> int:
    candidate = match["n"]
    grouped = len(_digits(candidate)) < len(candidate)
    return _whole(match) if grouped or _possible(candidate, "CN", strict=True) else 0


#: How people group the eleven digits of a Chinese mobile number; "1 3 5 7 9 11 13 15" is a list of sizes.
_MOBILE_GROUPS = {
    *((11,), (3, 8), (7, 4), (3, 4, 4), (3, 3, 5), (4, 3, 4), (5, 6), (6, 5), (5, 3, 3)),
    *((1, 10), (1, 3, 7), (3, 2, 2, 2, 2), (3, 4, 2, 2), (1,) * 11),
}


def _is_cn_mobile(match: re.Match[str]) -> int:
    groups = tuple(len(group) for group in re.findall("[0-9]+", match["core"]))
    separators = set(re.findall("[^0-9]", match["core"]))  # two kinds: a model and years, "F150 2004-2008"
    good = groups in _MOBILE_GROUPS and len(separators) < 2
    coded = _follows(match, _SURE_CODE) or _in_address(match)
    return _whole(match) if good and not coded else 0


_NANP_FORM = re.compile(
    r"(?:1[-. ]?)?(?:\([0-9]{3}\) ?[0-9]{3}[-. ]|[0-9]{3}-[0-9]{3}-)[0-9]{4}|(?:1\.)?[0-9]{3}\.[0-9]{3}\.[0-9]{4}"
)
_IN_A_LIST = re.compile(r"[A-Za-z]$|[0-9] $")  # "N223-347 3200", "770 870 970 1070"


def _is_nanp(match: re.Match[str]) -> int:
    if _NANP_FORM.match(match["n"]):
        return _whole(match)
    listed = _follows(match, _IN_A_LIST) or _follows(match, _CODE) or _in_address(match)
    return _whole(match) if not listed and _possible(match["core"], "US", strict=True) else 0


def _is_trunk(match: re.Match[str]) -> int:
    """A number with a leading 0, in groups: European, African, Asian national forms."""
    groups = re.findall("[0-9]+", match["n"])
    lengths = [len(group) for group in groups]
    gauges = all(group[0] == "0" for group in groups)  # sets of guitar strings: 010-013-017
    # Groups after the area code grow (3-4) or end in a pair (3-2-2); part numbers do otherwise (073-3150-406).
    grown = lengths[1:] == sorted(lengths[1:]) or lengths[-1] == 2
    return _whole(match) if 10 <= sum(lengths) <= 12 and grown and not gauges else 0


_DATE = re.compile(
    r"(?:19|20)[0-9]{2}\D(?:0?[1-9]|1[0-2])\D[0-9]{1,2}|[0-9]{1,2}\D[0-9]{1,2}\D(?:19|20)[0-9]{2}"
    r"|(?:19|20)[0-9]{2}\D(?:19|20)[0-9]{2}|(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])[0-3][0-9](?![0-9])"
)


def _is_called_phone(match: re.Match[str]) -> int:
    candidate = match["n"]
    lengths = [len(group) for group in re.findall("[0-9]+", candidate)]
    lonely = sum(length == 1 for length in lengths) > 1
    return 0 if lonely or _DATE.match(candidate) else _whole(match)


#: Words that announce a number of any national form, and words that follow one.
_CALLED = (
    r"(?i:(?<![a-z<])(?:(?:tele)?phone|tel|mobile|cell|cellphone|call|ring|dial|fax|whatsapp|sms|text|reach|contact"
    r"|answer|answering|messages?|registered)"
    r"(?: (?:me|us|them|him|her))?(?: (?:number|no|nr|num))?(?: (?:is|at|on|to|under)){0,2}[ :.#'\-\n]{0,3}"
    r"|(?:number|nr) (?:is|was)[ :]{1,2}"
    r"|(?:电话|手机号|手机|致电|拨打|热线|座机|传真|联系方式)(?:号码|号)?[是为:, (]{0,3})"
)
_ANY = r"(?P<n>\(?[0-9](?:" + _SEP + r"{0,2}[0-9]){6,14}" + _EXTENSION + r")(?![0-9])(?![.][0-9])"
_PLACE = r"(?=[ \-]{1,2}(?i:office|fax|mobile|cell|home|work)(?![A-Za-z]))"

#: In order of precedence: what one has taken, the next does not see.
DETECTORS = (
    Detector("SECRET", re.compile(r"(?i)://(?P<n>[^\s/@<>\x00]{1,200})(?=@[a-z0-9])"), _whole),
    Detector(
        "SECRET",
        re.compile(
            r"(?i)[?&;](?:access_token|token|api_?key|key|secret|signature|sig|password|passwd|pwd|session|sessionid|sid"
            r"|auth|code)=(?=[^\s&<>]{0,64}[0-9])(?P<n>[^\s&<>\x00\u4e00-\u9fff]{6,2000})"
        ),
        _whole,
    ),
    Detector(
        "EMAIL",
        re.compile(
            r"(?P<n>[a-zA-Z0-9À-ɏ_](?:[a-zA-Z0-9À-ɏ._%+'\-]{0,62}[a-zA-Z0-9À-ɏ_%+\-])?"
            r"@(?:[a-zA-Z0-9À-ɏ\-]{1,63}\.){1,6}[a-zA-Z]{2,24})"
        ),
        _whole,
    ),
    Detector(
        "IBAN",
        re.compile(r"(?<![A-Za-z0-9])(?P<n>[A-Za-z]{2}[0-9]{2}(?:[ \-]?[A-Za-z0-9]){11,30})"),
        lambda match: _longest(match["n"], _is_iban),
    ),
    Detector(
        "CN_ID",
        re.compile(r"(?<![0-9])(?P<n>[1-9][0-9]{5}[ \-]?[12][0-9]{7}[ \-]?[0-9]{3}[0-9Xx])(?![0-9])"),
        _is_cn_id,
    ),
    Detector(
        "CN_ID",
        re.compile(r"(?:身份证|证件)(?:号码|号)?[是为: ]{0,3}(?P<n>[1-9][0-9]{7}[01][0-9][0-3][0-9]{4})(?![0-9])"),
        _whole,
    ),
    Detector("CARD", re.compile(r"(?<![0-9])(?P<n>[0-9]{12,19})(?![0-9])"), _is_card),
    Detector(
        "CARD",
        re.compile(
            r"(?<![0-9])(?P<n>[0-9]{4}(?P<s>[ \-]{1,2})[0-9]{4}(?P=s)[0-9]{4}(?P=s)[0-9]{4}(?P=s)[0-9]{1,3})(?![0-9])"
        ),
        _is_card,
    ),
    Detector(
        "CARD",
        re.compile(r"(?<![0-9])(?P<n>[0-9]{4}(?P<s>[ \-]{1,2})[0-9]{4}(?P=s)[0-9]{4}(?P=s)[0-9]{1,4})(?![0-9])"),
        _is_card,
    ),
    Detector(
        "CARD",
        re.compile(r"(?<![0-9])(?P<n>[0-9]{4}[ \-][0-9]{6}[ \-][0-9]{4,5}|[0-9]{6}[ \-][0-9]{7,13})(?![0-9])"),
        _is_card,
    ),
    Detector(
        "IP",
        re.compile(
            r"(?<![0-9A-Za-z:.])(?P<n>(?:[0-9a-fA-F]{0,4}:){2,7}(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9a-fA-F]{0,4}))(?![0-9A-Za-z:])"
        ),
        _is_ipv6,
    ),
    Detector(
        "IP",
        re.compile(
            r"(?<![0-9.])(?P<n>(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9]))"
            r"(?![0-9])(?!\.[0-9])"
        ),
        _is_ipv4,
    ),
    Detector(
        "SSN",
        re.compile(_HEAD + r"(?P<n>(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4})" + _TAIL),
        _whole,
    ),
    Detector(
        "PHONE",
        re.compile(r"(?<![A-Za-z+])(?P<n>\(?\+ ?[1-9](?:" + _SEP + r"{0,3}[0-9]){6,16}" + _EXTENSION + r")(?![0-9])"),
        _is_plus,
    ),
    Detector(
        "PHONE",
        re.compile(_HEAD + r"(?P<n>00[1-9](?:" + _SEP + r"{0,3}[0-9]){7,15}" + _EXTENSION + r")" + _TAIL),
        _is_double_zero,
    ),
    Detector(
        "PHONE",
        re.compile(r"(?<![0-9])(?P<n>(?:\(?86\)?[ \-]?)?(?P<core>1[ .\-]?[3-9](?:[ .\-]?[0-9]){9}))(?![0-9])"),
        _is_cn_mobile,
    ),
    Detector(
        "PHONE",
        re.compile(
            _HEAD + r"(?P<n>(?:86[ \-]?)?\(?0(?:10|2[0-9]|[3-9][0-9]{2})\)?[ \-]{0,3}[2-9][0-9]{2,3}[ \-]?[0-9]{4}"
            r"(?:[ \-]?(?:转|-)[0-9]{1,6})?)(?![0-9])"
        ),
        _is_cn_landline,
    ),
    Detector(
        "PHONE",
        re.compile(
            _HEAD
            + r"(?P<n>(?:1[\-. ]?)?(?P<core>\(?[2-9][0-9]{2}\)?[\-. ]{0,2}[0-9]{3}[\-. ]?[0-9]{4})"
            + _EXTENSION
            + ")"
            + _TAIL
        ),
        _is_nanp,
    ),
    Detector(
        "PHONE",
        re.compile(_HEAD + r"(?P<n>\(?0[1-9][0-9]{0,3}\)?[ .\-/][0-9]{2,8}(?:[ .\-][0-9]{2,8}){0,3})" + _TAIL),
        _is_trunk,
    ),
    Detector("QQ", re.compile(r"(?i)(?:QQ|扣扣)(?:号码|号|群)?[是为: ]{0,3}(?P<n>[1-9][0-9]{4,10})(?![0-9])"), _whole),
    Detector("PHONE", re.compile(_CALLED + _ANY), _is_called_phone),
    Detector("PHONE", re.compile(_HEAD + _ANY + _PLACE), _is_called_phone),
)

from __future__ import annotations

from typing import Any

import pytest

from ray_profile.config import Source, parse
from ray_profile.errors import ConfigError
from ray_profile.serve_config import Span


def source(**rest: Any) -> Source:
    section = {"format": "columns", "paths": ["x"], **rest}
    return parse({"root": "r", "sources": {"s": section}}).sources["s"]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "Etc/GMT-8", "US/Eastern"])
def test_zones_are_iana_names(zone: str) -> None:
    assert source(timezone=zone).timezone == zone


@pytest.mark.parametrize(
    ("zone", "step"),
    [
        ("posix/Asia/Shanghai", "did you mean 'Asia/Shanghai'"),
        ("right/Asia/Shanghai", "did you mean 'Asia/Shanghai'"),
        ("Asia/Shanghia", "did you mean 'Asia/Shanghai'"),
        ("localtime", "use an IANA name"),
        ("Mars", "use an IANA name|did you mean"),
        ("", "use an IANA name"),
        ("../x", "use an IANA name"),
        ("Asia", "no time zone"),
    ],
)
def test_zone_of_this_machine_only_or_of_none_is_refused(zone: str, step: str) -> None:
    with pytest.raises(ConfigError, match=rf"sources\.s\.timezone = .*no time zone; .*({step})|{step}"):
        source(timezone=zone)


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d",
        "%d/%m/%y",
        "%-d.%-m.%Y %-H:%M",
        "%Y-%m-%dT%H:%M:%S%.fZ",
        "%Y-%m-%d %I:%M %p",
        "%Y-%m-%d %I %p",
        "%Y%m%dT%H",
        "%Y%m%dT%H%z",
        "%a %b %d %H:%M:%S %z %Y",
        "%Y-%m-%d %H:%M:%S%#z",
        "%Y年%m月%d日",
        "%j %Y",
        "%c",
        "%s",
        "%Y-%m",
    ],
)
def test_time_formats_that_read_what_they_write_are_taken(form: str) -> None:
    assert source(time_format=form).time_format == form


@pytest.mark.parametrize("form", ["%Q", "foo", "", "%", "%%", "%H:%M", "%d/%m", "%Y-%m-%d %I:%M", "yyyy-MM-dd"])
def test_time_format_that_reads_no_date_is_refused(form: str) -> None:
    with pytest.raises(ConfigError, match=r"sources\.s\.time_format = .*reads no date; use strptime"):
        source(time_format=form)


@pytest.mark.parametrize("delimiter", ["", "||", "，", '"', "\n", "\r"])
def test_delimiter_is_one_character_that_can_stand_between_fields(delimiter: str) -> None:
    with pytest.raises(ConfigError, match=r"sources\.s\.delimiter = .*not one ASCII character"):
        source(delimiter=delimiter)


@pytest.mark.parametrize("key", ["replicas", "encoders"])
def test_replicas_are_a_number_or_a_range(key: str) -> None:
    def of(value: object) -> object:
        return getattr(parse({"root": "x", "serve": {key: value}}).serve, key)

    assert of(3) == 3
    assert of({"min": 1, "max": 4}) == Span(min=1, max=4)
    for value, match in (
        (-1, rf"serve\.{key} = -1: .* 0"),
        ("many", rf"serve\.{key} = 'many': .*integer"),
        ({"min": 4, "max": 1}, rf"serve\.{key}\.max = 1: it is below min = 4"),
        ({"min": 0, "max": 1}, rf"serve\.{key}\.min = 0"),
        ({"min": 1, "mx": 2}, rf"unknown key 'serve\.{key}\.mx'; did you mean 'serve\.{key}\.max'"),
    ):
        with pytest.raises(ConfigError, match=match):
            of(value)


def test_an_endpoint_without_look_ups_is_none() -> None:
    assert parse({"root": "x", "serve": {"encoders": 0}}).serve.encoders == 0
    with pytest.raises(ConfigError, match=r"serve\.replicas = 0: nobody would answer"):
        parse({"root": "x", "serve": {"replicas": 0}})

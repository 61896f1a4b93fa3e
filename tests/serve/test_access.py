"""Who may ask: tokens are kept as hashes, open what their scopes name, and end when they say."""

from __future__ import annotations

import json
import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from ray_profile.errors import ConfigError
from ray_profile.serve import access, limits
from ray_profile.serve.access import Caller, TokenFile, authenticated
from ray_profile.serve.problems import Problem

NOW = access.now_utc()


def make(path: Path, name: str = "search", scopes: tuple[str, ...] = ("profiles:read",), **more: object) -> str:
    told = {"rate": None, "expires": None, "now": NOW, **more}
    return access.made(path, name, scopes, **told)  # type: ignore[arg-type]


def refused(path: Path, header: str | None, moment: float | None = None) -> Problem:
    with pytest.raises(Problem) as caught:
        authenticated([TokenFile(path)], header, NOW.timestamp() if moment is None else moment)
    return caught.value


def test_a_token_opens_what_it_names_and_is_nowhere_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "tokens.jsonl"
    token = make(path, scopes=("profiles:read", "embed"))
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    caller = authenticated([TokenFile(path)], f"Bearer {token}", NOW.timestamp())
    assert caller.name == "search"
    caller.insist("embed")
    with pytest.raises(Problem, match="why:read") as caught:
        caller.insist("why:read")
    assert caught.value.status == 403
    Caller("root", frozenset({"admin"})).insist("why:read")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer x{}", "Bearer \ud800"])
def test_whatever_is_no_token_is_refused_alike(tmp_path: Path, header: str | None) -> None:
    path = tmp_path / "tokens"
    token = make(path)
    problem = refused(path, None if header is None else header.replace("{}", token))
    assert (problem.status, problem.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert problem.to_bytes() == refused(path, "Bearer nothing").to_bytes()


def test_a_token_ends_when_it_says(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = make(path, expires=NOW + timedelta(days=1))
    authenticated([TokenFile(path)], f"bearer {token}", NOW.timestamp())
    late = refused(path, f"Bearer {token}", (NOW + timedelta(days=1, seconds=1)).timestamp())
    assert late.to_bytes() == refused(path, "Bearer nothing").to_bytes()


def test_a_token_that_is_taken_out_opens_nothing_any_more(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token, other = make(path), make(path, "crm")
    keys = TokenFile(path)
    assert keys.caller(token) is not None
    lines = path.read_text().splitlines()
    path.write_text(lines[1] + "\n")
    assert keys.caller(token) is None
    assert keys.caller(other) is not None


def test_an_edit_that_goes_wrong_takes_nobody_s_token_away(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = make(path)
    keys = TokenFile(path)
    whole = path.read_text()
    for broken in (whole + '{"name": "x"', whole.replace("null", "0", 1), None):
        path.unlink() if broken is None else path.write_text(broken)
        assert keys.caller(token) is not None
        assert keys.caller("rp_other") is None
    path.write_text(whole.strip())
    other = make(path, "crm")
    assert [keys.caller(each) is not None for each in (token, other)] == [True, True]


def test_no_token_of_ours_is_called_as_an_outside_issuer_s_caller_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'jwt:alice' begins with 'jwt:'"):
        access.made(tmp_path / "tokens", "jwt:alice", ["embed"], None, None, access.now_utc())


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    make(path)
    for match, told in (
        ("'profiles' is no scope", {"name": "a", "scopes": ("profiles",)}),
        ("no scope is named", {"name": "a", "scopes": ()}),
        ("has a token 'search' already", {"name": "search"}),
    ):
        with pytest.raises(ConfigError, match=match):
            make(path, **told)  # type: ignore[arg-type]
    path.write_text('{"name": "x"}\n')
    with pytest.raises(ConfigError, match="tokens:1 is no token"):
        TokenFile(path)
    with pytest.raises(ConfigError, match="ray-profile token new"):
        TokenFile(tmp_path / "absent")


def test_a_rate_lets_a_burst_through_and_then_says_when_to_come_again() -> None:
    rates, caller = limits.Rates(), Caller("search", frozenset(), rate=5.0)
    with pytest.raises(Problem) as dear:
        rates.take(caller, cost=1_000, now=99.0)
    assert dear.value.headers == {"Retry-After": "198"}
    for _ in range(10):
        rates.take(caller, now=99.0)
    with pytest.raises(Problem):
        rates.take(caller, now=99.0)
    rates.take(caller, cost=5, now=100.0)
    with pytest.raises(Problem) as caught:
        rates.take(caller, now=100.0)
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    rates.take(caller, now=100.2)
    rates.take(Caller("crm", frozenset(), rate=5.0), now=100.2)
    with pytest.raises(Problem):
        rates.take(caller, now=100.2)
    rates.take(Caller("search", frozenset()), now=100.2)


def test_any_number_of_callers_is_not_remembered_for_ever() -> None:
    """And one who has used up a rate has not got it back by others' asking."""
    rates, one = limits.Rates(), Caller("one", frozenset(), rate=0.001)
    for at in range(5 * limits.REMEMBERED):
        now = at / 10
        if at == 4 * limits.REMEMBERED:
            rates.take(one, now=now)
        rates.take(Caller(f"c{at}", frozenset(), rate=1.0), now=now)
        assert len(rates._left) <= 2 * limits.REMEMBERED
        if 0 < now - 0.4 * limits.REMEMBERED < limits.FORGOTTEN_SECONDS and not at % 100:
            with pytest.raises(Problem):
                rates.take(one, now=now)


def test_so_many_at_once_and_no_more() -> None:
    gate = limits.Gate(2)
    with gate.inside(), gate.inside(), pytest.raises(Problem, match="2 such requests"), gate.inside():
        pass
    with gate.inside(), gate.inside():
        pass


def test_a_problem_is_plain_json_whatever_it_quotes() -> None:
    said = json.loads(Problem(422, "fields='\ud800' and 书").to_bytes())
    assert said == {
        "type": "about:blank", "title": said["title"], "status": 422, "detail": "fields='\ud800' and 书",
    }  # fmt: skip
    assert os.linesep not in Problem(422, "x").to_bytes().decode()

"""What Prometheus reads: counts by route and status, times, and the index, without a name of anybody."""

from __future__ import annotations

import json
import threading
import time
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ray_profile.serve import access


@pytest.fixture(scope="module")
def scraper(server: Any) -> str:
    """A token that opens the metrics alone."""
    now = access.now_utc()
    return access.made(server.folder / "tokens", "prometheus", ("metrics:read",), None, None, now)


def scraped(server: Any, token: str) -> dict[tuple[str, ...], float]:
    """Name and labels' values, in the order of the labels' names -> value."""
    status, headers, body = server.ask("GET", "/metrics", token=token)
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = text_string_to_metric_families(body.decode())
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_requests_are_counted_by_route_and_status(server: Any, scraper: str, user: str) -> None:
    before = scraped(server, scraper)
    slow = access.made(server.folder / "tokens", "slow", ("profiles:read",), 0.5, None, access.now_utc())
    server.get(f"/v1/profiles/{quote(user)}")
    server.ask("GET", "/v1/profiles/nobody%2Fat%20all")
    server.ask("GET", f"/v1/profiles/{quote(user)}", token=None)
    server.ask("GET", f"/v1/profiles/{quote(user)}/why?tag=x", token=server.other)
    refusals = [server.ask("GET", f"/v1/profiles/{quote(user)}", token=slow)[0] for _ in range(3)].count(429)
    server.ask("POST", "/v1/embed", b'{"texts": ["a", "b", "c"]}')
    server.ask("GET", "/wp-admin")
    server.ask("PROPFIND", "/coffee")
    after = scraped(server, scraper)
    new = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
    total, one, why = "ray_profile_requests_total", "/v1/profiles/{user}", "/v1/profiles/{user}/why"
    assert refusals > 0
    assert {key[1:]: value for key, value in new.items() if key[0] == total} == {
        ("GET", one, "200"): 1 + 3 - refusals,
        ("GET", one, "404"): 1,
        ("GET", one, "429"): refusals,
        ("GET", "none", "401"): 1,
        ("GET", why, "403"): 1,
        ("POST", "/v1/embed", "200"): 1,
        ("GET", "none", "404"): 1,
        ("other", "none", "404"): 1,
        ("GET", "/metrics", "200"): 1,
    }
    assert new["ray_profile_request_seconds_count", one] == 5
    assert 0 < new["ray_profile_request_seconds_sum", one] < new["ray_profile_request_seconds_count", one] * 30
    assert (new["ray_profile_embed_texts_count",], new["ray_profile_embed_texts_sum",]) == (1, 3)
    bucket = "ray_profile_embed_texts_bucket"
    assert (new[bucket, "4.0"], (bucket, "2.0") in new) == (1, False)


def test_the_index_says_what_it_is_and_since_when(server: Any, scraper: str) -> None:
    found = scraped(server, scraper)
    index = server.service.index
    assert found["ray_profile_index_version",] == index.version
    assert found["ray_profile_index_profiles",] == index.manifest.profiles > 0
    assert time.time() - 3600 < found["ray_profile_index_made_timestamp_seconds",] <= time.time()


def test_what_is_under_way_is_seen(server: Any, scraper: str) -> None:
    inside, go_on = threading.Event(), threading.Event()

    async def slow(texts: list[str]) -> list[dict[str, Any]]:
        import asyncio

        inside.set()
        await asyncio.to_thread(go_on.wait, 20)
        return [{} for _ in texts]

    whole, server.service.embed = server.service.embed, slow
    thread = threading.Thread(target=server.ask, args=("POST", "/v1/embed", b'{"texts": ["a"]}'))
    thread.start()
    try:
        assert inside.wait(20)
        assert scraped(server, scraper)["ray_profile_requests_in_flight",] == 2  # it, and the scrape
    finally:
        go_on.set()
        thread.join()
        server.service.embed = whole
    assert scraped(server, scraper)["ray_profile_requests_in_flight",] == 1


def test_nobody_is_named_and_only_its_own_scope_opens_it(server: Any, scraper: str, user: str) -> None:
    found = server.get(f"/v1/profiles/{quote(user)}")
    text = server.ask("GET", "/metrics", token=scraper)[2].decode()
    for name in (user, found["user_id"], "search", "prometheus", scraper):
        assert name not in text
    for token, status in ((None, 401), ("rp_wrong", 401), (server.token, 403)):
        assert server.ask("GET", "/metrics", token=token)[0] == status
    assert server.ask("GET", f"/v1/profiles/{quote(user)}", token=scraper)[0] == 403
    described = json.loads(server.ask("GET", "/v1/openapi.json", token=None)[2])
    assert set(described["paths"]["/metrics"]["get"]["responses"]) >= {"200", "401", "403"}

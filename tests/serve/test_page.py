"""The page for people in a real browser: found, explained, in two languages, and talking to nobody else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_core_python
import polars as pl
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from ray_profile.sources.simulate import Shop

SECONDS = 20
NEARBY = (("items", "items"), ("similar", "users"))
AXE = Path(axe_core_python.__file__).with_name("axe.min.js")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser on this machine; install Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for each in ("headless=new", "disable-gpu", "no-first-run", "disable-background-networking", "disable-sync"):
        options.add_argument(f"--{each}")
    options.add_argument("--lang=en-US")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # which Chromium insists on for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, server: Any) -> webdriver.Chrome:
    """The page as somebody opens it who has no token yet."""
    browser.get(f"http://127.0.0.1:{server.port}/")
    browser.execute_script("sessionStorage.clear()")
    browser.get(f"http://127.0.0.1:{server.port}/?again")
    for log in ("browser", "performance"):
        browser.get_log(log)
    return browser


#: Answers to a path wait until they are let go.
HOLD = """
window.held = [];
const real = window.fetch, slow = arguments[0];
window.fetch = (path, ...more) => real(path, ...more).then(answer =>
  path === slow ? new Promise(go => held.push(() => go(answer))) : answer);
"""


def liked(server: Any, shop: Shop) -> list[str]:
    """Customers with tags, by their own ids."""
    wrote = pl.concat([pl.read_ndjson(path) for path in sorted(shop.config.parent.glob("reviews-*.jsonl.gz"))])
    users = sorted(str(user) for user in wrote["user_id"].drop_nulls().unique())
    return [user for user in users if user and server.get(f"/v1/profiles/{user}")["tags"]]


def look(page: webdriver.Chrome, user: str, token: str | None) -> None:
    """Ask for a user by the keyboard alone, with a token where the page wants one."""
    page.find_element(By.ID, "user").send_keys(user, Keys.ENTER)
    waiting(page, lambda: page.find_element(By.ID, "access").is_displayed())
    if token is not None:
        page.find_element(By.ID, "token").send_keys(token, Keys.ENTER)
        waiting(page, lambda: page.find_elements(By.ID, "who"))


def waiting(page: webdriver.Chrome, until: Any) -> Any:
    return WebDriverWait(page, SECONDS).until(lambda _: until())


def test_a_profile_is_found_and_explained(page: webdriver.Chrome, server: Any, user: str) -> None:
    look(page, user, server.token)
    profile = server.get(f"/v1/profiles/{user}")
    assert page.find_element(By.ID, "who").text == user
    body = page.find_element(By.ID, "profile").text
    tag = profile["tags"][0]
    assert f"{tag['support']} of {tag['of']} rows" in body
    assert server.get("/v1/tags")["names"][tag["tag"]] in body, "people read names, not ids"
    page.find_element(By.CSS_SELECTOR, "details.row summary").send_keys(Keys.ENTER)
    quote = waiting(page, lambda: page.find_elements(By.CSS_SELECTOR, "details.row[open] blockquote"))[0].text
    evidence = server.get(f"/v1/profiles/{user}/why?tag={tag['tag']}")["evidence"][0]
    assert evidence["id"] in quote
    assert (evidence["snippet"] or "") in quote
    (near, *_), (other, *_) = (server.get(f"/v1/users/{user}/{what}")[what2] for what, what2 in NEARBY)
    waiting(page, lambda: near["title"] in page.find_element(By.ID, "profile").text)
    waiting(page, lambda: other["user_id"][:12] in page.find_element(By.ID, "profile").text)
    assert f"like {near['because']['like']['title']}" in page.find_element(By.ID, "profile").text
    assert len(page.find_elements(By.CSS_SELECTOR, ".stacked li")) == len(profile["feelings"])
    requests = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {each["params"]["request"]["url"] for each in requests if each["method"] == "Network.requestWillBeSent"}
    outside = {url for url in urls if not url.startswith((f"http://127.0.0.1:{server.port}/", "data:"))}
    assert not outside
    refused = f"/v1/profiles/{user} - Failed to load resource: the server responded with a status of 401"
    errors = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert all(refused in message for message in errors), errors


def test_the_newest_search_wins_whichever_answers_last(page: webdriver.Chrome, server: Any, shop: Shop) -> None:
    """And a row opened then is explained by the customer whose row it is."""
    slow, quick = liked(server, shop)[:2]
    look(page, quick, server.token)
    page.execute_script(HOLD, f"/v1/profiles/{slow}")
    field = page.find_element(By.ID, "user")
    for user in (slow, quick):
        field.clear()
        field.send_keys(user, Keys.ENTER)
    waiting(page, lambda: page.execute_script("return held.length") == 1)
    waiting(page, lambda: page.find_element(By.ID, "who").text == quick)
    page.execute_script("held.forEach(go => go())")
    page.execute_async_script("setTimeout(arguments[0], 200)")  # more than the answer needs, were it still to be drawn
    assert page.find_element(By.ID, "who").text == quick
    page.find_element(By.CSS_SELECTOR, "details.row summary").send_keys(Keys.ENTER)
    text = waiting(page, lambda: page.find_elements(By.CSS_SELECTOR, "details.row[open] blockquote"))[0].text
    tag = server.get(f"/v1/profiles/{quick}")["tags"][0]["tag"]
    assert server.get(f"/v1/profiles/{quick}/why?tag={tag}")["evidence"][0]["id"] in text


def test_it_speaks_chinese_and_says_what_is_not_there(page: webdriver.Chrome, server: Any, user: str) -> None:
    look(page, user, server.token)
    page.find_element(By.ID, "language").click()
    assert page.find_element(By.TAG_NAME, "html").get_attribute("lang") == "zh-CN"
    assert "兴趣标签" in page.find_element(By.ID, "profile").text
    field = page.find_element(By.ID, "user")
    field.clear()
    field.send_keys("<img src=x onerror=alert(1)>", Keys.ENTER)
    assert waiting(page, lambda: "没有该客户的画像" in page.find_element(By.ID, "told").text)
    assert not page.find_elements(By.CSS_SELECTOR, "#profile *")


def test_a_token_of_another_scope_sees_nothing(page: webdriver.Chrome, server: Any, user: str) -> None:
    look(page, user, None)
    page.find_element(By.ID, "token").send_keys(server.other, Keys.ENTER)
    assert waiting(page, lambda: "may not see" in page.find_element(By.ID, "told").text)
    assert page.find_element(By.ID, "access").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(page: webdriver.Chrome, server: Any, user: str, scheme: str) -> None:
    """axe-core finds nothing to complain of, also with the evidence open."""
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    look(page, user, server.token)
    page.find_element(By.CSS_SELECTOR, "details.row summary").send_keys(Keys.ENTER)
    waiting(page, lambda: page.find_elements(By.CSS_SELECTOR, "details.row[open] blockquote"))
    page.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    page.execute_script(AXE.read_text(encoding="utf-8"))
    found = page.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == []
    assert len(found["passes"]) > 10

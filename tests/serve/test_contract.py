"""The application against its own description: what the contract allows, what it forbids, and what it does not name."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished

from ray_profile.serve import access
from ray_profile.serve.problems import MEDIA_TYPE

EXAMPLES = 100  # of an operation, beside those of every boundary that its schemas have

#: What these take is more than a schema can say: SQL, times, one of two parameters. They may refuse what it allows.
CHOOSY = "^/v1/(segments:|profiles:compute|profiles/.*/why)"


@schemathesis.check
def refusals_are_problems(_: schemathesis.CheckContext, answer: schemathesis.Response, case: schemathesis.Case) -> None:
    """Whatever is refused is refused by a problem document, and nothing shows how the server is made."""
    assert b"Traceback" not in answer.content
    assert b'File "' not in answer.content
    if answer.status_code >= 400 and case.method != "HEAD" and answer.request.method != "HEAD":
        assert answer.headers["content-type"] == [MEDIA_TYPE]
        assert json.loads(answer.content)["status"] == answer.status_code


@pytest.mark.slow
def test_every_answer_is_one_that_the_contract_names(server: Any) -> None:
    """Every operation, with data that its schemas allow and with data that they forbid; and the server goes on."""
    token = access.made(server.folder / "tokens", "everything", ("admin",), None, None, access.now_utc())
    address = f"http://127.0.0.1:{server.port}"
    config = SchemathesisConfig.from_dict(
        {
            "seed": 1,
            "base-url": address,
            "headers": {"Authorization": f"Bearer {token}"},
            "generation": {"deterministic": True, "mode": "all", "max-examples": EXAMPLES},
            "checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}},  # 413 and 415 too
            "phases": {"stateful": {"enabled": False}},
            "operations": [{"include-path-regex": CHOOSY, "checks": {"positive_data_acceptance": {"enabled": False}}}],
            "continue-on-failure": True,
        }
    )
    contract = schemathesis.openapi.from_url(f"{address}/v1/openapi.json", config=config)
    asked: Counter[str] = Counter()
    answered: Counter[int] = Counter()
    broken: dict[tuple[str, str], str] = {}
    for event in from_schema(contract).execute():
        assert not isinstance(event, FatalError | NonFatalError), event
        if not isinstance(event, ScenarioFinished):
            continue
        told = event.recorder
        asked[told.label] += len(told.interactions)
        answered.update(each.response.status_code for each in told.interactions.values() if each.response is not None)
        for case, checks in told.checks.items():
            for check in checks:
                if check.status is Status.FAILURE:
                    assert check.failure_info is not None
                    sent = told.cases[case].value.as_curl_command()
                    broken[told.label, check.name] = f"{check.failure_info.failure.message} of {sent}"
    assert not broken, "\n".join(f"{label}: {name}: {said}" for (label, name), said in broken.items())
    described = json.loads(server.ask("GET", "/v1/openapi.json", token=None)[2])
    assert set(asked) == {f"{way.upper()} {path}" for path, ways in described["paths"].items() for way in ways}
    assert all(count >= 5 for count in asked.values()), asked
    assert {200, 401, 404, 405, 415, 422} <= set(answered), answered
    assert server.ask("GET", "/healthz", token=None)[0] == 200

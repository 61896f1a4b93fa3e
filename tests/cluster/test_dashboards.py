"""The dashboard and the alerts ask for numbers that Ray really exports."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import manifests
import pytest
import ray
import yaml

RAY = Path(ray.__file__).parent
DASHBOARD = json.loads((manifests.CLUSTER / "metrics" / "grafana.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((manifests.CLUSTER / "metrics" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS += [rule["expr"] for rule in RULES]


@cache
def exported() -> frozenset[str]:
    """The names in the queries of the dashboards that this Ray brings along."""
    sources = (RAY / "dashboard" / "modules" / "metrics" / "dashboards").glob("*_panels.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    # By their labels in braces or their windows in brackets, so that a word of a description is no name.
    return frozenset(re.findall(r"\b((?:ray|autoscaler)_[a-z0-9_]+)(?=\{\{)", text))


def names(expression: str) -> set[str]:
    """The names of numbers in a query, and no labels."""
    bare = re.sub(r"\{[^}]*\}|\bby \([^)]*\)", "", expression)
    return set(re.findall(r"\b[a-z]\w*_\w+\b", bare)) - {"histogram_quantile", "clamp_min"}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_number_is_one_that_ray_exports(expression: str) -> None:
    asked = names(expression)
    assert asked
    assert asked <= exported(), f"no such numbers: {sorted(asked - exported())}"
    assert expression.count("(") == expression.count(")")


def test_a_misspelt_number_would_be_found() -> None:
    assert names("sum(rate(ray_data_outptu_rows[1m])) by (operator)") == {"ray_data_outptu_rows"}
    assert not names("sum(rate(ray_data_outptu_rows[1m])) by (operator)") <= exported()
    assert len(exported()) > 80


def test_panels_stand_side_by_side_and_say_what_they_show() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["description"].endswith(".") for panel in panels)
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{(\w+)\}", json.dumps(DASHBOARD))) == variables


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "next"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"]))))
        assert told <= (grouped or {"instance"}), rule["alert"]

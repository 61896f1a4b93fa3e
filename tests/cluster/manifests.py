"""The files of cluster/, read, and the schemas that they must keep."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
CRDS = Path(__file__).resolve().parents[3] / "shared" / "kuberay-crds"
RAY_UP = ("aws.yaml", "gcp.yaml")

#: Kind -> the file of the operator that describes it.
OPERATORS = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "RayService": "ray.io_rayservices.yaml",
}


def kubernetes() -> list[tuple[str, dict[str, Any]]]:
    """Every object of cluster/kuberay/ with its file's name."""
    found = []
    for path in sorted((CLUSTER / "kuberay").glob("*.yaml")):
        found += [(path.name, each) for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    return found


def rays() -> list[tuple[str, dict[str, Any]]]:
    """The cluster that each object of the operator describes, with its file's name."""
    where = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    return [
        (name, each["spec"][where[each["kind"]]] if where[each["kind"]] else each["spec"])
        for name, each in kubernetes()
        if each["kind"] in where
    ]


def templates(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a cluster: the head's, then the workers'."""
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def ray_up(name: str) -> dict[str, Any]:
    """A file for `ray up`, as it stands."""
    found = yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A Kubernetes schema as JSON Schema under which a key that is not listed is an error.

    The API server prunes unknown keys silently, and so a misspelt one would mean nothing.
    """
    schema = copy.deepcopy(schema)
    for each in _schemas(schema):
        if each.pop("x-kubernetes-int-or-string", False):
            each.pop("type", None)
            each["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        if "properties" in each and not each.get("x-kubernetes-preserve-unknown-fields"):
            each.setdefault("additionalProperties", False)
    return schema


def _schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for each in schema.get("properties", {}).values():
        yield from _schemas(each)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _schemas(schema[key])


def operator_schema(kind: str) -> dict[str, Any]:
    """What the operator takes for one of its kinds, in version v1."""
    crd = yaml.safe_load((CRDS / OPERATORS[kind]).read_text(encoding="utf-8"))
    version = next(each for each in crd["spec"]["versions"] if each["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = METADATA
    return schema


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = _object(("name",), name=_TEXT, namespace=_TEXT, labels=_TEXTS, annotations=_TEXTS)
_SELECTOR = _object(
    (),
    matchLabels=_TEXTS,
    matchExpressions={
        "type": "array",
        "items": _object(
            ("key", "operator"),
            key=_TEXT,
            operator={"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
            values={"type": "array", "items": {"type": "string"}},
        ),
    },
)
_PEER = _object(
    (),
    podSelector=_SELECTOR,
    namespaceSelector=_SELECTOR,
    ipBlock=_object(("cidr",), cidr=_TEXT, **{"except": {"type": "array", "items": _TEXT}}),
)
_PORTS = {
    "type": "array",
    "minItems": 1,
    "items": _object(
        ("protocol", "port"),
        protocol={"enum": ["TCP", "UDP", "SCTP"]},
        port={"type": "integer", "minimum": 1, "maximum": 65535},
    ),
}


def _rules(peers: str) -> dict[str, Any]:
    rule = _object((peers,), ports=_PORTS, **{peers: {"type": "array", "minItems": 1, "items": _PEER}})
    return {"type": "array", "items": rule}


def _kind(api: str, kind: str, **rest: Any) -> dict[str, Any]:
    named = {} if kind == "Kustomization" else {"metadata": METADATA}
    properties = {"apiVersion": {"const": api}, "kind": {"const": kind}, **named, **rest}
    return _object(("apiVersion", "kind", *named), **properties)


#: What of Kubernetes' own kinds these files use, narrower than Kubernetes itself: a rule without peers, which would
#: mean everybody, is no rule here.
BUILT_IN = {
    "Namespace": _kind("v1", "Namespace"),
    "ServiceAccount": _kind("v1", "ServiceAccount"),
    "NetworkPolicy": _kind(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        spec=_object(
            ("podSelector", "policyTypes"),
            podSelector=_SELECTOR,
            policyTypes={"type": "array", "minItems": 1, "items": {"enum": ["Ingress", "Egress"]}},
            ingress=_rules("from"),
            egress=_rules("to"),
        ),
    ),
    "Kustomization": _kind(
        "kustomize.config.k8s.io/v1beta1",
        "Kustomization",
        namespace=_TEXT,
        resources={"type": "array", "minItems": 1, "items": _TEXT},
    ),
}

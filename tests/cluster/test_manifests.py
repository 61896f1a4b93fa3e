"""Every file of cluster/ is one that Ray and Kubernetes take, and a misspelt key in it is found."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import manifests
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

NODE_KEYS = {
    "aws": {
        "InstanceType", "ImageId", "KeyName", "SubnetIds", "SecurityGroupIds", "IamInstanceProfile",
        "InstanceMarketOptions", "MetadataOptions", "BlockDeviceMappings",
    },
    "gcp": {"machineType", "disks", "networkInterfaces", "scheduling", "serviceAccounts"},
}  # fmt: skip

needs_crds = pytest.mark.skipif(
    not manifests.CRDS.is_dir(), reason=f"the operator's schemas are not on this machine ({manifests.CRDS} is absent)"
)
OF_THE_OPERATOR = [(name, each) for name, each in manifests.kubernetes() if each["kind"] in manifests.OPERATORS]
BUILT_IN = [(name, each) for name, each in manifests.kubernetes() if each["kind"] not in manifests.OPERATORS]


def misspelt(value: Any) -> Iterator[Any]:
    """Copies of nested mappings, each with one key at one place misspelt; keys that people choose are left out."""
    for path in list(_keys(value, ())):
        made = copy.deepcopy(value)
        at = made
        for part in path[:-1]:
            at = at[part]
        at[path[-1] + "x"] = at.pop(path[-1])
        yield path, made


def _keys(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    free = ("labels", "annotations", "matchLabels", "nodeSelector", "rayStartParams", "requests", "limits")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not path or path[-1] not in free:
                yield (*path, key)
            yield from _keys(inner, (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _keys(inner, (*path, at))


@needs_crds
@pytest.mark.parametrize(("name", "manifest"), OF_THE_OPERATOR, ids=[name for name, _ in OF_THE_OPERATOR])
def test_the_operator_takes_its_manifests_and_no_misspelt_one(name: str, manifest: dict[str, Any]) -> None:
    check = jsonschema.Draft7Validator(manifests.operator_schema(manifest["kind"]))
    assert [error.message for error in check.iter_errors(manifest)] == []
    spelt = 0
    for path, each in misspelt(manifest["spec"]):
        spelt += 1
        assert not check.is_valid({**manifest, "spec": each}), f"{name}: {path} misspelt is not found"
    assert spelt > 50


@pytest.mark.parametrize(("name", "manifest"), BUILT_IN, ids=[f"{name}-{at}" for at, (name, _) in enumerate(BUILT_IN)])
def test_kinds_of_kubernetes_itself_hold_what_they_may_and_no_misspelt_key(name: str, manifest: dict[str, Any]) -> None:
    check = jsonschema.Draft7Validator(manifests.BUILT_IN[manifest["kind"]])
    assert [error.message for error in check.iter_errors(manifest)] == []
    for path, each in misspelt(manifest):
        assert not check.is_valid(each), f"{name}: {path} misspelt is not found"


@pytest.mark.parametrize("name", manifests.RAY_UP)
def test_ray_up_takes_its_files(name: str) -> None:
    config = manifests.ray_up(name)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    known = NODE_KEYS[config["provider"]["type"]]
    for node in config["available_node_types"].values():
        assert set(node["node_config"]) <= known  # into which Ray does not look
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        validate_config({**prepared, "idle_timeout_minuts": 5})


def test_the_endpoint_is_an_application_that_serve_deploys() -> None:
    from ray_profile.pipelines import serve

    (service,) = [each for _, each in manifests.kubernetes() if each["kind"] == "RayService"]
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(config)
    assert set(config) <= set(ServeDeploySchema.model_fields)
    assert set(config["http_options"]) <= {"host", "port", "request_timeout_s", "keep_alive_timeout_s", "root_path"}
    (application,) = schema.applications
    assert set(config["applications"][0]) <= set(type(application).model_fields)
    assert application.import_path == f"{serve.__name__}:{serve.app.__name__}"
    serve.Arguments.model_validate(application.args)


@pytest.mark.parametrize("path", sorted((manifests.CLUSTER / "iam").glob("*.json")), ids=lambda path: path.name)
def test_policies_are_statements_that_name_what_they_are_for(path: Any) -> None:
    policy = json.loads(path.read_text())
    assert policy["Version"] == "2012-10-17"
    kept = {"Sid", "Effect", "Action", "Resource", "Condition", "Principal"}
    for each in policy["Statement"]:
        assert {"Sid", "Effect", "Action", "Resource"} <= set(each) <= kept
        assert ("Principal" in each) is (path.name == "bucket-policy.json")
        if each["Effect"] == "Allow":
            actions = each["Action"]
            assert all("*" not in action for action in actions)
            assert each["Resource"] != "*" or all(action.startswith("ec2:Describe") for action in actions)


def test_what_only_reads_the_root_may_not_write_it() -> None:
    def writes(name: str) -> set[str]:
        policy = json.loads((manifests.CLUSTER / "iam" / name).read_text())
        return {
            resource
            for each in policy["Statement"]
            if {"s3:PutObject", "s3:DeleteObject"} & set(each["Action"])
            for resource in each["Resource"]
        }

    assert writes("serve.json") == set()
    assert writes("head.json") == set()
    assert writes("train.json") == {f"arn:aws:s3:::BUCKET/shop/{part}/*" for part in ("models", "training")}
    assert writes("build.json") == {"arn:aws:s3:::BUCKET/shop/*"}


def test_the_bucket_refuses_plain_http_and_what_is_stored_unencrypted() -> None:
    policy = json.loads((manifests.CLUSTER / "iam" / "bucket-policy.json").read_text())
    denied = {each["Sid"]: each for each in policy["Statement"]}
    assert {each["Effect"] for each in denied.values()} == {"Deny"}
    assert denied["DenyWithoutTls"]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert set(denied["DenyWithoutTls"]["Resource"]) == {"arn:aws:s3:::BUCKET", "arn:aws:s3:::BUCKET/*"}
    # A write that names no encryption is not refused: it gets the bucket's own, which is never none.
    unencrypted = denied["DenyUnencryptedWrites"]["Condition"]
    assert unencrypted["Null"] == {"s3:x-amz-server-side-encryption": "false"}
    assert unencrypted["StringNotEquals"] == {"s3:x-amz-server-side-encryption": ["aws:kms", "AES256"]}

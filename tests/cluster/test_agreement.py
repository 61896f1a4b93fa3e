"""What cluster/ says of the package is so: versions, image, entrypoints, paths, keys, and what must be replaced."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import manifests
import pytest
import ray
from packaging.requirements import Requirement
from packaging.version import Version
from ray._private.label_utils import validate_node_labels

import ray_profile
from ray_profile.config import parse

ROOT = manifests.CLUSTER.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = f"registry.example.com/ray_profile:{ray_profile.__version__}"
DOCKERFILE = (manifests.CLUSTER / "Dockerfile").read_text()
README = (manifests.CLUSTER / "README.md").read_text()
FILES = [path for path in sorted(manifests.CLUSTER.rglob("*")) if path.is_file()]


def images(value: Any) -> set[str]:
    """Every `image` in nested mappings."""
    if isinstance(value, dict):
        return {str(inner) for key, inner in value.items() if key == "image"}.union(*map(images, value.values()))
    return set().union(*map(images, value)) if isinstance(value, list) else set()


def types_of(name: str) -> int:
    """The most nodes of a type that any `ray up` file allows."""
    return min(int(manifests.ray_up(file)["available_node_types"][name]["max_workers"]) for file in manifests.RAY_UP)


def pins() -> dict[str, Version]:
    lines = (manifests.CLUSTER / "constraints.txt").read_text().splitlines()
    named = [line.split("==") for line in lines if not line.startswith("#")]
    return {name: Version(version) for name, version in named}


def test_all_files_name_one_image_of_this_version() -> None:
    for name in manifests.RAY_UP:
        assert images(manifests.ray_up(name)) == {IMAGE}
    for name, each in manifests.kubernetes():
        if each["kind"] in manifests.OPERATORS:
            assert images(each) == {IMAGE}, name
    assert f"-t {IMAGE} " in DOCKERFILE
    assert IMAGE in README


def test_all_files_name_the_ray_that_is_pinned() -> None:
    version = ray.__version__
    assert {spec["rayVersion"] for _, spec in manifests.rays()} == {version}
    assert f"ray[default]=={version}" in DOCKERFILE
    assert pins()["ray"] == Version(version)


def test_the_image_holds_what_the_package_needs_in_versions_that_it_allows() -> None:
    found = pins()
    wanted = [*PROJECT["dependencies"]]
    for extra in ("bilingual", "train", "serve"):
        wanted += PROJECT["optional-dependencies"][extra]
    for each in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", each.name).lower()
        assert found[name] in each.specifier, f"{name} {found[name]} is not {each.specifier}"
    (python,) = re.findall(r"^FROM python:([\d.]+)-", DOCKERFILE, re.MULTILINE)
    assert Version(python) in Requirement(f"python{PROJECT['requires-python']}").specifier


def test_the_image_is_nobodys_root_and_holds_the_jobs() -> None:
    users = re.findall(r"^USER (\w+)", DOCKERFILE, re.MULTILINE)
    assert users[-1] == "ray"
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, f"{source} does not reach the build"


def test_entrypoints_are_scripts_that_there_are() -> None:
    entrypoints = [each["spec"]["entrypoint"] for _, each in manifests.kubernetes() if each["kind"] == "RayJob"]
    for entrypoint in entrypoints:
        python, script, option, config = entrypoint.split()
        assert (python, option) == ("python", "--config")
        assert (ROOT / Path(script).relative_to("/opt/ray_profile")).is_file()
        assert config == "s3://BUCKET/conf/ray_profile.toml"
    for script in re.findall(r"jobs/\w+\.py", README):
        assert (ROOT / script).is_file(), script


def test_the_configuration_in_the_readme_is_one() -> None:
    (block,) = [each for each in re.findall(r"```toml\n(.*?)```", README, re.DOTALL) if "[privacy]" in each]
    config = parse(tomllib.loads(block))
    for name in manifests.RAY_UP:
        types = manifests.ray_up(name)["available_node_types"].values()
        for kind, stated in (("CPU", config.cluster.cpus), ("GPU", config.cluster.gpus)):
            assert sum(node["max_workers"] * node["resources"].get(kind, 0) for node in types) == stated
    wanted = {"encode": config.build.encoder_labels, "train": config.train.worker_labels}
    for name, labels in wanted.items():
        assert labels
        validate_node_labels(labels)
        groups = [group for _, spec in manifests.rays() for group in spec["workerGroupSpecs"]]
        found = [group["labels"] for group in groups if group["groupName"] == name]
        found += [manifests.ray_up(file)["available_node_types"][name]["labels"] for file in manifests.RAY_UP]
        assert len(found) == 4
        assert all(each == labels for each in found)
    assert config.train.most_workers <= types_of("train")
    assert config.build.encoders is not None
    assert config.build.encoders <= types_of("encode")
    mounts = [
        mount["mountPath"]
        for _, spec in manifests.rays()
        for template in manifests.templates(spec)
        for mount in template["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == "secrets"
    ]
    folders = {*mounts, *(key for name in manifests.RAY_UP for key in manifests.ray_up(name)["file_mounts"])}
    assert len(folders) == 1
    for secret in (config.privacy.key_file, config.serve.tokens):
        assert secret is not None
        assert str(Path(secret).parent) in folders


def test_everything_that_a_person_must_replace_is_in_the_readme() -> None:
    """Words in capitals stand for what differs from shop to shop."""
    known = set(re.findall(r"^\| `([A-Z][A-Z0-9_]+)` \|", README, re.MULTILINE))
    used: set[str] = set()
    for path in FILES:
        if path.suffix not in (".yaml", ".json"):
            continue
        text = re.sub(r"#.*", "", path.read_text())
        text = re.sub(r"\b(?:RAY|AWS)_\w+|\$\w+", "", text)
        used |= set(
            re.findall(
                r"(?<![\w-])(BUCKET|SOURCES|REGION|[A-Z][A-Z0-9]+_[A-Z0-9_]+|[A-Z]+GROUP|SUBNETWORK)(?![\w-])", text
            )
        )
    assert used - known == set()
    assert known - used == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(manifests.CLUSTER)))
def test_no_file_holds_a_secret(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|AWS_SECRET_ACCESS_KEY *[=:] *\S", text)


def test_every_file_is_in_the_readme() -> None:
    for path in set(FILES) - {manifests.CLUSTER / "README.md"}:
        assert path.name in README, f"{path.name} is not in README.md"


def test_accounts_are_those_that_pods_use() -> None:
    accounts = {each["metadata"]["name"] for _, each in manifests.kubernetes() if each["kind"] == "ServiceAccount"}
    used = {t["spec"]["serviceAccountName"] for _, spec in manifests.rays() for t in manifests.templates(spec)}
    assert accounts == used
    (kustomization,) = [each for _, each in manifests.kubernetes() if each["kind"] == "Kustomization"]
    for name in kustomization["resources"]:
        assert (manifests.CLUSTER / "kuberay" / name).is_file()

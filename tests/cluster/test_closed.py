"""A cluster of these files is closed to strangers, and pays for workers only while they work."""

from __future__ import annotations

import copy
from typing import Any

import manifests
import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import validate_config

KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "10000", "RAY_grpc_client_keepalive_timeout_ms": "5000"}
PRIVATE_PORTS = {6379, 8265, 10001, 52365}  # GCS, dashboard and Jobs, client, agent
RAYS = manifests.rays()
names = [name for name, _ in RAYS]


def environment(name: str) -> dict[str, str]:
    options = manifests.ray_up(name)["docker"]["run_options"]
    return dict(each.removeprefix("--env ").split("=", 1) for each in options if each.startswith("--env "))


def started(config: dict[str, Any], key: str) -> str:
    (command,) = [each for each in config[key] if "ray start" in each]
    return str(command)


@pytest.mark.parametrize("name", manifests.RAY_UP)
def test_ray_up_clusters_want_a_token_and_notice_a_silent_cut(name: str) -> None:
    found = environment(name)
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_AUTH_TOKEN_PATH"].startswith(next(iter(manifests.ray_up(name)["file_mounts"])))
    assert found.items() >= KEEPALIVE.items()
    assert "RAY_AUTH_TOKEN" not in found  # its value would stand in this file, and in `docker inspect`


@pytest.mark.parametrize("name", manifests.RAY_UP)
def test_ray_up_clusters_open_no_port_to_others(name: str) -> None:
    config = manifests.ray_up(name)
    assert config["provider"]["use_internal_ips"] is True
    head = started(config, "head_start_ray_commands")
    assert "dashboard-host" not in head  # Ray's default is 127.0.0.1
    assert "ray-client-server-port" not in head
    assert "security_group" not in config["provider"]  # Ray would make one, and open SSH to everybody
    for node in config["available_node_types"].values():
        made = node["node_config"]
        if config["provider"]["type"] == "aws":
            assert made["SecurityGroupIds"]
            assert made["SubnetIds"]
            assert made["IamInstanceProfile"]["Name"]  # Ray would make one that may do everything
            assert made["MetadataOptions"]["HttpTokens"] == "required"
            assert all(disk["Ebs"]["Encrypted"] for disk in made["BlockDeviceMappings"])
        else:
            assert all(set(each) == {"subnetwork"} for each in made["networkInterfaces"])  # no external address
            assert made["serviceAccounts"]


@pytest.mark.parametrize("name", manifests.RAY_UP)
def test_ray_up_heads_run_no_work_and_workers_come_and_go(name: str) -> None:
    config = manifests.ray_up(name)
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    assert (head["resources"], head["max_workers"]) == ({"CPU": 0, "GPU": 0}, 0)
    assert "--num-cpus=0 --num-gpus=0" in started(config, "head_start_ray_commands")
    assert "--head" not in started(config, "worker_start_ray_commands")
    assert all(node["min_workers"] == 0 for node in types.values())
    assert 0 < config["idle_timeout_minutes"] <= 15
    assert sum(node["max_workers"] for node in types.values()) == config["max_workers"]
    spot = {"aws": "InstanceMarketOptions", "gcp": "scheduling"}[config["provider"]["type"]]
    assert "spot" in str(types["encode"]["node_config"][spot]).lower()
    assert "spot" not in str(types["train"]["node_config"].get(spot, "")).lower()


@pytest.mark.parametrize(("name", "spec"), RAYS, ids=names)
def test_pods_want_a_token_notice_a_silent_cut_and_are_nobodys_root(name: str, spec: dict[str, Any]) -> None:
    assert spec["authOptions"] == {"mode": "token"}, name
    for template in manifests.templates(spec):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"]:
            said = {each["name"]: each.get("value") for each in container["env"]}
            assert said.items() >= KEEPALIVE.items()
            assert not {name for name in said if "TOKEN" in name or "SECRET" in name}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert all("hostPort" not in port for port in container.get("ports", ()))


@pytest.mark.parametrize(("name", "spec"), RAYS, ids=names)
def test_heads_run_no_work_and_gpus_are_there_only_for_a_job(name: str, spec: dict[str, Any]) -> None:
    """As Ray's own autoscaler understands the manifest."""
    assert spec["enableInTreeAutoscaling"] is True
    resource = {"metadata": {"name": "c", "namespace": "ray-profile"}, "spec": copy.deepcopy(spec)}
    config = _derive_autoscaling_config_from_ray_cr(resource)
    validate_config(config)
    assert 0 < config["idle_timeout_minutes"] <= 15
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert (head["resources"]["CPU"], head["resources"]["GPU"], head["max_workers"]) == (0, 0, 0)
    for group, node in types.items():
        gpus = node["resources"].get("GPU", 0)
        assert gpus == (1 if group in ("encode", "train") else 0)
        assert node["resources"]["CPU"] >= 4
        assert node.get("labels", {}) == ({"ray-profile/pool": group} if gpus else {})
        assert node["min_workers"] == (1 if name == "rayservice.yaml" else 0)
        assert node["min_workers"] < node["max_workers"] <= 12


def test_jobs_leave_no_cluster_behind() -> None:
    jobs = [each["spec"] for _, each in manifests.kubernetes() if each["kind"] == "RayJob"]
    assert len(jobs) == 2
    for job in jobs:
        assert job["shutdownAfterJobFinishes"] is True
        assert "clusterSelector" not in job
        assert job["activeDeadlineSeconds"] <= 86400


def test_no_service_or_ingress_shows_the_dashboard_the_jobs_or_the_control_store() -> None:
    kinds = {each["kind"] for _, each in manifests.kubernetes()}
    assert not kinds & {"Service", "Ingress", "Gateway", "HTTPRoute", "Route"}
    for _, spec in RAYS:
        head = spec["headGroupSpec"]
        assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)
        assert not {"headService", "ingressOptions"} & set(head)
    for _, each in manifests.kubernetes():
        assert "serveService" not in each.get("spec", {})


def test_network_policies_let_strangers_reach_only_what_is_listed() -> None:
    policies = {
        each["metadata"]["name"]: each["spec"] for _, each in manifests.kubernetes() if each["kind"] == "NetworkPolicy"
    }
    assert policies["deny-by-default"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    let_in: dict[int, set[str]] = {}
    for name, spec in policies.items():
        for direction in ("Ingress", "Egress"):
            assert not spec.get(direction.lower()) or direction in spec["policyTypes"], name
        for rule in spec.get("ingress", ()):
            for peer in rule["from"]:
                assert "ipBlock" not in peer, f"{name} lets addresses in"
                assert peer.get("namespaceSelector") != {}, f"{name} lets every namespace in"
                if "namespaceSelector" in peer:
                    assert rule["ports"], f"{name} opens every port"
                    for port in rule["ports"]:
                        let_in.setdefault(port["port"], set()).update(peer["namespaceSelector"]["matchLabels"].values())
        for rule in spec.get("egress", ()):
            for peer in rule["to"]:
                if "ipBlock" in peer:
                    assert "169.254.0.0/16" in peer["ipBlock"]["except"], f"{name} lets pods take the node's own role"
                    assert {port["port"] for port in rule["ports"]} <= {443, 6443}
    monitored = {port: {"monitoring"} for port in (8080, 44217, 44227)}
    assert let_in == {8265: {"kuberay-system"}, 8000: {"yes"}} | monitored
    assert {port for port in let_in if port in PRIVATE_PORTS} == {8265}  # to the operator alone


def test_policies_speak_of_pods_that_there_are() -> None:
    labels = [t["metadata"]["labels"] for _, spec in RAYS for t in manifests.templates(spec)]
    labels += [
        each["spec"]["submitterPodTemplate"]["metadata"]["labels"]
        for _, each in manifests.kubernetes()
        if each["kind"] == "RayJob"
    ]
    assert all(each["app.kubernetes.io/name"] == "ray-profile" for each in labels)
    roles = {each["ray-profile/role"] for each in labels}
    assert roles == {"head", "worker", "endpoint", "submitter"}
    for _, each in manifests.kubernetes():
        if each["kind"] == "NetworkPolicy":
            wanted = each["spec"]["podSelector"].get("matchLabels", {})
            assert not wanted or any(wanted.items() <= label.items() for label in labels)

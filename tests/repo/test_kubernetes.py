"""The files for deployment on Kubernetes: manifests, kustomizations and the set-up of nodes."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from hubcache.operate.options import Settings
from hubcache.setup.pages import Addresses
from support.deployment import DEPLOY, KUBERNETES, PORTS, VARIABLES, load
from support.processes import run
from support.recipes import recipes
from support.required import require

PEER_PORT = Settings().peer_listen[1]

FLEET = KUBERNETES / "fleet"
KUSTOMIZATIONS = [KUBERNETES, KUBERNETES / "node", FLEET]
CRD = "monitoring.coreos.com/v1"


def manifests(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the manifests of one kustomization."""
    (kustomization,) = load(directory / "kustomization.yaml")
    for name in kustomization["resources"]:
        yield from load(directory / name)


def workload(directory: Path) -> dict[str, Any]:
    (found,) = (each for each in manifests(directory) if each["kind"] in ("Deployment", "DaemonSet", "StatefulSet"))
    return found


def pod(directory: Path) -> dict[str, Any]:
    spec: dict[str, Any] = workload(directory)["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("directory", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_manifests_match_the_schemas_of_kubernetes(directory: Path) -> None:
    count = 0
    for manifest in manifests(directory):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
        count += 1
    assert count >= 2


def test_schemas_refuse_a_misspelled_field() -> None:
    (manifest,) = load(KUBERNETES / "deployment.yaml")
    manifest["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_every_manifest_is_in_a_kustomization_or_optional() -> None:
    for directory in KUSTOMIZATIONS:
        text = (directory / "kustomization.yaml").read_text()
        files = {path.name for path in directory.glob("*.yaml")} - {"kustomization.yaml"}
        assert files == set(re.findall(r"^  (?:# )?- (\S+\.yaml)", text, re.MULTILINE))


def test_nodes_publish_only_the_mirror() -> None:
    """Behind a port of a node, clients have the address of the node, and the proxy would serve the whole internet."""
    services = [each["spec"] for each in manifests(KUBERNETES) if each["kind"] == "Service"]
    assert {port["name"] for spec in services for port in spec["ports"]} == {"mirror", "proxy", "status"}
    published = [spec for spec in services if spec.get("type", "ClusterIP") != "ClusterIP"]
    assert [port["name"] for spec in published for port in spec["ports"]] == ["mirror"]


def test_service_monitor_finds_the_status_service() -> None:
    (monitor,) = load(KUBERNETES / "servicemonitor.yaml")
    assert monitor["apiVersion"] == CRD
    wanted, port = monitor["spec"]["selector"]["matchLabels"], monitor["spec"]["endpoints"][0]["port"]
    services = [each for each in manifests(KUBERNETES) if each["kind"] == "Service"]
    (found,) = (each for each in services if wanted.items() <= each["metadata"]["labels"].items())
    assert port in {each["name"] for each in found["spec"]["ports"]}


@pytest.mark.parametrize("directory", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_names_within_the_manifests_agree(directory: Path) -> None:
    (kustomization,) = load(directory / "kustomization.yaml")
    labels = workload(directory)["spec"]["template"]["metadata"]["labels"]
    assert workload(directory)["spec"]["selector"]["matchLabels"] == labels
    (container,) = pod(directory)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert set(ports.values()) <= PORTS | {PEER_PORT}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    for manifest in manifests(directory):
        if manifest["kind"] == "Service":
            assert manifest["spec"]["selector"] == labels
            assert all(ports[port["targetPort"]] == port["port"] for port in manifest["spec"]["ports"])
        if manifest["kind"] == "Namespace":
            assert manifest["metadata"]["name"] == kustomization["namespace"]
    (generator,) = kustomization["configMapGenerator"]
    assert container["envFrom"][0] == {"configMapRef": {"name": generator["name"]}}
    assert container["envFrom"][1:] == ([{"secretRef": {"name": "hubcache-bucket"}}] if directory == FLEET else [])
    assert {literal.partition("=")[0] for literal in generator["literals"]} <= VARIABLES
    volumes = {volume["name"] for volume in pod(directory)["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in workload(directory)["spec"].get("volumeClaimTemplates", [])}
    used = {
        mount["name"]
        for each in (*pod(directory).get("initContainers", []), container)
        for mount in each["volumeMounts"]
    }
    assert used == volumes


@pytest.mark.parametrize("directory", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_cache_has_the_rights_of_the_restricted_profile_and_time_to_stop(directory: Path) -> None:
    spec = pod(directory)
    (container,) = spec["containers"]
    context = spec["securityContext"] | container["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] == 10001
    assert not context["allowPrivilegeEscalation"]
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert spec["terminationGracePeriodSeconds"] > Settings().stop_within


def test_only_one_pod_at_a_time_opens_the_volume() -> None:
    deployment = workload(KUBERNETES)
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]) == (1, {"type": "Recreate"})


def test_only_caches_of_the_fleet_reach_the_port_of_peers() -> None:
    (policy,) = load(FLEET / "networkpolicy.yaml")
    labels = workload(FLEET)["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    everyone, peers = policy["spec"]["ingress"]
    assert "from" not in everyone
    assert peers["from"] == [{"podSelector": {"matchLabels": labels}}]
    (container,) = pod(FLEET)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert [port["port"] for port in peers["ports"]] == ["peers"]
    assert ports["peers"] == PEER_PORT
    assert {port["port"] for port in everyone["ports"]} == ports.keys() - {"peers"}


def test_secret_of_the_fleet_has_the_name_and_the_variables_of_the_readme() -> None:
    text = recipes(page=DEPLOY / "README.md")["fleet"].text
    assert "generic hubcache-bucket " in text
    assert {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} == set(
        re.findall(r"--from-literal=(\w+)=", text)
    )


class Node:
    """The init container's script of the DaemonSet with directories of this machine."""

    def __init__(self, directory: Path) -> None:
        (init,) = pod(KUBERNETES / "node")["initContainers"]
        self.command = init["command"]
        self.hosts, self.data = directory / "certs.d/docker.io", directory / "data"
        self.data.mkdir()
        variables = {variable["name"] for variable in init["env"]}
        self.environment = {"NODE_IP": "10.0.0.7", "HOSTS": str(self.hosts), "DATA": str(self.data)}
        assert variables == set(self.environment)
        chown = directory / "bin/chown"
        chown.parent.mkdir()
        chown.write_text(f'#!/bin/sh\necho "$@" >>{shlex.quote(str(directory / "chown"))}\n')
        chown.chmod(0o755)
        self.owners = directory / "chown"
        self.environment["PATH"] = f"{chown.parent}:{os.environ['PATH']}"

    def attach(self, **variables: str) -> str:
        """Run the script; returns the text of hosts.toml."""
        run(*self.command, env=self.environment | variables)
        return (self.hosts / "hosts.toml").read_text()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node whose containerd is not attached."""
    return Node(tmp_path)


@pytest.mark.parametrize(("address", "host"), [("10.0.0.7", "10.0.0.7"), ("2001:db8::7", "[2001:db8::7]")])
def test_node_is_attached_as_the_set_up_page_says(node: Node, address: str, host: str) -> None:
    expected = "# Written by hubcache\n" + recipes(Addresses(host, 5000, 8080))["containerd-hosts"].text
    assert node.attach(NODE_IP=address) == expected
    assert node.attach(NODE_IP=address) == expected, "the file that it wrote itself is written again"
    assert [path.name for path in node.hosts.iterdir()] == ["hosts.toml"]
    assert node.owners.read_text() == f"10001:10001 {node.data}\n" * 2


def test_file_of_the_node_that_is_not_from_hubcache_stays(node: Node) -> None:
    node.hosts.mkdir(parents=True)
    (node.hosts / "hosts.toml").write_text('server = "https://other.example"\n')
    assert node.attach() == 'server = "https://other.example"\n'


def test_shellcheck_finds_no_fault_in_the_script_of_the_node() -> None:
    require("shellcheck")
    (init,) = pod(KUBERNETES / "node")["initContainers"]
    run("shellcheck", "--shell=sh", "-", stdin=init["command"][-1])

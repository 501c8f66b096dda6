"""The files for deployment: image, compose, systemd unit, Kubernetes manifests.

tests/e2e/test_container builds and runs the image.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from hubcache.operate import config_file
from hubcache.operate.options import OPTIONS, Settings
from hubcache.operate.version import version
from hubcache.setup.pages import Addresses
from ruamel.yaml import YAML
from support.paths import REPOSITORY
from support.processes import run
from support.recipes import recipes
from support.required import require

DEPLOY = REPOSITORY / "scripts/deploy"
KUBERNETES = DEPLOY / "kubernetes"
UNIT = DEPLOY / "hubcache.service"
PORTS = {8080, 5000, 9180}
PEER_PORT = Settings().peer_listen[1]
VARIABLES = {each.name.upper() for each in OPTIONS}
MAX_EXPOSURE = 15
"""In tenths: systemd-analyze calls services up to 2.0 safe; most distributions' services have more than 9."""


def load(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return [document for document in YAML(typ="safe", pure=True).load_all(path.read_text()) if document]


def settings_named(text: str) -> set[str]:
    """Return the names of variables such as HUBCACHE_SIZE in a text."""
    return set(re.findall(r"\bHUBCACHE_[A-Z_]+\b", text))


def test_variables_are_options() -> None:
    used = {name for path in DEPLOY.rglob("*") if path.is_file() for name in settings_named(path.read_text())}
    assert {"HUBCACHE_SIZE", "HUBCACHE_DIR", "HUBCACHE_STATUS"} <= used
    assert used <= VARIABLES


def test_paths_and_commands_of_the_readme_are_right() -> None:
    text = (DEPLOY / "README.md").read_text()
    named = set(re.findall(r"(?:scripts|addon)/[\w./-]*\w", text)) | set(re.findall(r"\]\(([\w./-]+)", text))
    assert "scripts/deploy/kubernetes/node" in named
    assert [name for name in named if not (REPOSITORY / name).exists() and not (DEPLOY / name).exists()] == []
    commands = recipes(page=DEPLOY / "README.md")
    assert {"build", "run", "compose", "systemd", "kubernetes", "node", "fleet", "package"} == set(commands)
    for command in commands.values():
        run("sh", "-n", "-c", command.text)


# -- image ----------------------------------------------------------------------------------------------------------


def instructions() -> dict[str, list[str]]:
    """Return the arguments of the Containerfile's instructions by their names."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    found: dict[str, list[str]] = {}
    for line in filter(None, text.splitlines()):
        name, _, arguments = line.partition(" ")
        found.setdefault(name, []).append(" ".join(arguments.split()))
    return found


def test_image_is_built_with_the_uv_of_the_repository() -> None:
    (pinned,) = re.findall(r"^uv_version=(\S+)", (REPOSITORY / "scripts/setup.sh").read_text(), re.MULTILINE)
    assert f"UV_VERSION={pinned}" in instructions()["ARG"]


def test_image_declares_how_it_is_run() -> None:
    found = instructions()
    assert found["USER"] == ["10001:10001"]
    assert {int(port) for port in found["EXPOSE"][0].split()} == PORTS
    assert found["VOLUME"] == ["/var/lib/hubcache"]
    assert found["STOPSIGNAL"] == ["SIGTERM"]
    assert (json.loads(found["ENTRYPOINT"][0]), json.loads(found["CMD"][0])) == (["hubcache"], ["serve"])
    assert "/healthz" in found["HEALTHCHECK"][0]


def test_build_context_has_all_files_that_are_copied() -> None:
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in instructions()["COPY"] if "--from" not in line for name in line.split()[:-1]}
    assert copied == kept
    assert all((REPOSITORY / name).exists() for name in kept)


# -- release --------------------------------------------------------------------------------------------------------


def test_release_needs_the_tag_of_the_version() -> None:
    (workflow,) = load(REPOSITORY / ".github/workflows/release.yml")
    steps = workflow["jobs"]["release"]["steps"]
    (check,) = (step["run"] for step in steps if step.get("name") == "Compare the tag with the version")
    for tag, is_right in ((f"v{version()}", True), (version(), False), ("v0.0.1", False)):
        run("bash", "-ec", check, env={"GITHUB_REF_NAME": tag}, cwd=REPOSITORY, fails=not is_right)


def test_release_builds_the_image_with_its_declared_arguments() -> None:
    text = (REPOSITORY / ".github/workflows/release.yml").read_text()
    given = set(re.findall(r'--build-arg "(\w+)=', text))
    declared = {argument.partition("=")[0] for argument in instructions()["ARG"]}
    assert given == {"VERSION", "REVISION"}
    assert given < declared


# -- compose --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file."""
    (document,) = load(DEPLOY / "compose.yaml")
    return document


def test_compose_publishes_the_ports_and_keeps_the_store(compose: dict[str, Any]) -> None:
    service = compose["services"]["hubcache"]
    published = {int(port.rpartition(":")[2]) for port in service["ports"]}
    assert published == PORTS
    assert next(port for port in service["ports"] if port.endswith(":9180")).startswith("127.0.0.1:")
    assert service["volumes"] == ["data:/var/lib/hubcache"]
    assert service["restart"] == "unless-stopped"
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_compose_waits_longer_than_running_downloads(compose: dict[str, Any]) -> None:
    grace = compose["services"]["hubcache"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > Settings().stop_within


def test_compose_declares_what_its_services_use(compose: dict[str, Any]) -> None:
    volumes, configs = set(), set()
    for service in compose["services"].values():
        volumes |= {volume.partition(":")[0] for volume in service["volumes"]}
        configs |= {config["source"] for config in service.get("configs", [])}
    files = {name for name in volumes if name.startswith("./")}
    assert volumes - files == set(compose["volumes"])
    assert configs == set(compose["configs"])
    assert [name for name in files if not (DEPLOY / name).is_file()] == []
    for config in compose["configs"].values():
        assert isinstance(YAML(typ="safe", pure=True).load(config["content"]), dict)


def test_compose_starts_monitoring_only_with_its_profile(compose: dict[str, Any]) -> None:
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    assert profiles == {"hubcache": None, "prometheus": ["monitoring"], "grafana": ["monitoring"]}


def test_prometheus_of_compose_is_configured_right(compose: dict[str, Any], tmp_path: Path) -> None:
    require("promtool")
    configuration = YAML(typ="safe", pure=True).load(compose["configs"]["prometheus"]["content"])
    (rules,) = configuration["rule_files"]
    (tmp_path / Path(rules).name).write_text((DEPLOY / "alerts.yml").read_text())
    configuration["rule_files"] = [str(tmp_path / Path(rules).name)]
    (tmp_path / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML
    assert "SUCCESS" in run("promtool", "check", "config", tmp_path / "prometheus.yml")
    volumes = compose["services"]["prometheus"]["volumes"]
    assert f"./alerts.yml:{rules}:ro" in volumes
    (target,) = configuration["scrape_configs"][0]["static_configs"][0]["targets"]
    name, _, port = target.partition(":")
    assert name in compose["services"]
    assert int(port) in PORTS


def test_compose_is_accepted_by_docker() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("not installed: docker compose, which is no package of Debian")
    run(docker, "compose", "-f", DEPLOY / "compose.yaml", "--profile", "monitoring", "config", "--quiet")


# -- systemd --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unit with a program that exists."""
    text, count = re.subn(
        r"^ExecStart=/opt/hubcache/bin/hubcache ", "ExecStart=/bin/true ", UNIT.read_text(), flags=re.M
    )
    assert count == 1
    path = tmp_path_factory.mktemp("systemd") / UNIT.name
    path.write_text(text)
    return path


def unit_values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_unit_is_accepted_by_systemd(unit: Path) -> None:
    require("systemd-analyze")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_unit_exposes_little(unit: Path) -> None:
    require("systemd-analyze")
    run("systemd-analyze", "security", "--offline=true", f"--threshold={MAX_EXPOSURE}", "--no-pager", unit)


def test_unit_waits_longer_than_running_downloads() -> None:
    assert int(unit_values("TimeoutStopSec")[0]) > Settings().stop_within
    assert unit_values("KillMode") == ["mixed"], "workers would get a second signal, which cuts off their downloads"


def test_unit_is_notified_and_reloads() -> None:
    assert unit_values("Type") == ["notify"]
    assert unit_values("ExecReload") == ["/bin/kill -HUP $MAINPID"]


def test_sample_config_file_is_valid() -> None:
    text = (DEPLOY / "hubcache.yaml").read_text()
    values = config_file.parse(text)
    examples = re.sub(r"^# (\w+: )", r"\1", text, flags=re.MULTILINE)
    assert len(config_file.parse(examples)) > len(values) > 0
    for each in OPTIONS:
        if each.name in config_file.parse(examples):
            each.parse(config_file.parse(examples)[each.name])


# -- Kubernetes -----------------------------------------------------------------------------------------------------

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

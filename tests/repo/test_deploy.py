"""The files for deployment: image, compose and systemd unit.

tests/e2e/test_container builds and runs the image.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hubcache.operate import config_file
from hubcache.operate.options import OPTIONS, Settings
from hubcache.operate.version import version
from ruamel.yaml import YAML
from support.deployment import DEPLOY, PORTS, VARIABLES, load
from support.paths import REPOSITORY
from support.processes import run
from support.recipes import recipes
from support.required import require

UNIT = DEPLOY / "hubcache.service"
MAX_EXPOSURE = 15
"""In tenths: systemd-analyze calls services up to 2.0 safe; most distributions' services have more than 9."""


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

"""The attach script with stand-ins for the engines: what it changes, keeps, proves and restores."""

import json
import os
import shutil
import subprocess
import tomllib

import pytest
from hubcache.setup.pages import ATTACH_SCRIPT
from support.attach import Machine, attach_fixtures
from support.required import require

cache, machine = attach_fixtures()

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]


@pytest.mark.parametrize("shell", SHELLS)
def test_older_docker_is_attached_by_daemon_json_and_detached(machine: Machine, shell: str) -> None:
    machine.docker("20.10.24")
    machine.have("jq")
    daemon = machine.file("/etc/docker/daemon.json")
    daemon.parent.mkdir(parents=True)
    daemon.write_text('{"log-driver":"journald",\n\n "registry-mirrors": ["https://other.example"]}')
    daemon.chmod(0o600)
    before = machine.snapshot()

    attached = machine.attach(shell=shell)
    assert attached.returncode == 0, attached.stderr
    assert json.loads(daemon.read_text()) == {
        "log-driver": "journald",
        "registry-mirrors": [f"http://{machine.cache.address}", "https://other.example"],
    }
    assert daemon.stat().st_mode & 0o777 == 0o600
    assert "the cache answered 7 requests of that pull" in attached.stdout

    again = machine.attach(shell=shell)
    assert "nothing to change" in again.stdout

    detached = machine.attach("--detach", shell=shell)
    assert detached.returncode == 0, detached.stderr
    assert machine.snapshot() == before
    assert not machine.state.exists()


@pytest.mark.parametrize("tool", ["jq", "python3"])
def test_other_settings_of_daemon_json_are_kept(machine: Machine, tool: str) -> None:
    machine.docker("24.0.7")
    machine.have(tool)
    daemon = machine.file("/etc/docker/daemon.json")
    daemon.parent.mkdir(parents=True)
    daemon.write_text(json.dumps({"data-root": "/mnt/ä", "live-restore": True}))
    assert machine.attach("--no-pull").returncode == 0
    assert json.loads(daemon.read_text()) == {
        "data-root": "/mnt/ä",
        "live-restore": True,
        "registry-mirrors": [f"http://{machine.cache.address}"],
    }


def test_daemon_json_that_cannot_be_merged_is_left_alone(machine: Machine) -> None:
    machine.docker("24.0.7")
    daemon = machine.file("/etc/docker/daemon.json")
    daemon.parent.mkdir(parents=True)
    daemon.write_text('{"debug": true}')
    attached = machine.attach()
    assert attached.returncode == 1
    assert "install jq or python3" in attached.stderr
    assert daemon.read_text() == '{"debug": true}'


@pytest.mark.parametrize(
    ("version", "capabilities"),
    [
        ("28.0.0", '["pull", "resolve"]'),
        ("29.0.4", '["pull", "resolve"]'),
        ("29.1.0-rc.1", '["pull", "resolve", "referrers"]'),
        ("30.0.0", '["pull", "resolve", "referrers"]'),
    ],
)
def test_newer_docker_gets_hosts_toml_and_no_restart(machine: Machine, version: str, capabilities: str) -> None:
    machine.docker(version, "[[driver-type io.containerd.snapshotter.v1]]")
    before = machine.snapshot()
    assert machine.attach().returncode == 0
    hosts = machine.file("/etc/docker/certs.d/docker.io/hosts.toml").read_text()
    assert f'[host."http://{machine.cache.address}"]\ncapabilities = {capabilities}\n' in hosts
    assert not machine.file("/etc/docker/daemon.json").exists()
    assert machine.attach("--detach").returncode == 0
    assert machine.snapshot() == before, "directories that did not exist are removed again"


def test_all_registries_are_sent_to_the_mirror_where_the_engine_can(machine: Machine) -> None:
    machine.docker("29.1.0", "[[driver-type io.containerd.snapshotter.v1]]")
    config = machine.file("/etc/containerd/config.toml")
    config.parent.mkdir(parents=True)
    config.write_text('[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"\n')
    before = machine.snapshot()
    attached = machine.attach("--all-registries")
    assert attached.returncode == 0, attached.stderr
    for engine, capabilities in (("docker", ["pull", "resolve", "referrers"]), ("containerd", ["pull", "resolve"])):
        assert not machine.file(f"/etc/{engine}/certs.d/docker.io").exists()
        text = machine.file(f"/etc/{engine}/certs.d/_default/hosts.toml").read_text()
        assert tomllib.loads(text) == {"host": {f"http://{machine.cache.address}": {"capabilities": capabilities}}}
    assert machine.attach("--detach").returncode == 0
    assert machine.snapshot() == before


def test_older_docker_says_that_its_mirror_is_for_docker_hub_only(machine: Machine) -> None:
    machine.docker("24.0.7")
    attached = machine.attach("--all-registries")
    assert attached.returncode == 0
    assert "mirrors for Docker Hub only" in attached.stdout
    assert machine.file("/etc/docker/daemon.json").exists()


def test_newer_docker_without_the_containerd_store_gets_daemon_json(machine: Machine) -> None:
    machine.docker("29.0.1", "[[Backing Filesystem extfs]]")
    assert machine.attach().returncode == 0
    assert machine.file("/etc/docker/daemon.json").exists()


def test_symbolic_link_stays_a_link(machine: Machine) -> None:
    machine.docker("20.10.24")
    daemon, target = machine.file("/etc/docker/daemon.json"), machine.file("/srv/daemon.json")
    daemon.parent.mkdir(parents=True)
    target.parent.mkdir()
    target.write_text("")
    daemon.symlink_to(target)
    assert machine.attach().returncode == 0
    assert daemon.is_symlink()
    assert machine.cache.address in target.read_text()
    assert machine.attach("--detach").returncode == 0
    assert daemon.is_symlink()
    assert target.read_text() == ""


def test_dry_run_changes_nothing(machine: Machine) -> None:
    machine.docker("29.0.1", "[[driver-type io.containerd.snapshotter.v1]]")
    machine.program("podman", "")
    before = machine.snapshot()
    tried = machine.attach("--dry-run")
    assert tried.returncode == 0
    assert "would write /etc/docker/certs.d/docker.io/hosts.toml" in tried.stdout
    assert "would write /etc/containers/registries.conf.d/50-hubcache.conf" in tried.stdout
    assert machine.snapshot() == before
    assert not any("pull" in call for call in machine.calls)


def test_podman_containerd_and_k3s_are_attached_and_detached(machine: Machine) -> None:
    machine.program("podman", f'if [ "$1" = pull ]; then curl -fsS http://{machine.cache.address}/pull; fi')
    config = machine.file("/etc/containerd/config.toml")
    config.parent.mkdir(parents=True)
    config.write_text('[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"\n')
    machine.file("/etc/rancher/k3s").mkdir(parents=True)
    before = machine.snapshot()
    attached = machine.attach()
    assert attached.returncode == 0, attached.stderr
    assert "config_path" not in attached.stdout
    for path in (
        "/etc/containerd/certs.d/docker.io/hosts.toml",
        "/etc/containers/registries.conf.d/50-hubcache.conf",
        "/etc/rancher/k3s/registries.yaml",
    ):
        assert machine.cache.address in machine.file(path).read_text()
    assert machine.attach("--detach").returncode == 0
    assert machine.snapshot() == before


def test_containerd_without_config_path_is_reported(machine: Machine) -> None:
    config = machine.file("/etc/containerd/config.toml")
    config.parent.mkdir(parents=True)
    config.write_text("version = 2\n")
    assert "has no config_path" in machine.attach("--no-pull").stdout


def test_file_that_was_changed_after_attach_is_not_overwritten_by_detach(machine: Machine) -> None:
    machine.docker("20.10.24")
    machine.attach("--no-pull")
    daemon = machine.file("/etc/docker/daemon.json")
    daemon.write_text('{"debug": true}')
    detached = machine.attach("--detach")
    assert "was changed after it was attached" in detached.stdout
    assert daemon.read_text() == '{"debug": true}'
    assert machine.state.exists()


def test_second_detach_leaves_files_alone_that_the_first_restored(machine: Machine) -> None:
    machine.program("podman", "")
    hosts = machine.file("/etc/containerd/certs.d/docker.io/hosts.toml")
    hosts.parent.mkdir(parents=True)
    hosts.write_text("own = true\n")
    machine.file("/etc/containerd/config.toml").write_text("version = 2\n")
    assert machine.attach("--no-pull").returncode == 0
    mirror = machine.file("/etc/containers/registries.conf.d/50-hubcache.conf")
    mirror.write_text("changed\n")
    for _ in range(2):
        detached = machine.attach("--detach")
        assert detached.returncode == 0, detached.stderr
        assert hosts.read_text() == "own = true\n"
        assert mirror.read_text() == "changed\n"


def test_attach_that_was_interrupted_while_it_kept_a_file_keeps_it_whole_the_next_time(machine: Machine) -> None:
    machine.docker("20.10.24")
    machine.have("jq")
    daemon = machine.file("/etc/docker/daemon.json")
    daemon.parent.mkdir(parents=True)
    daemon.write_text('{"debug": true}')
    machine.state.mkdir()
    (machine.state / "%2Fetc%2Fdocker%2Fdaemon.json.original").write_text('{"deb')
    assert machine.attach("--no-pull").returncode == 0
    assert machine.attach("--detach").returncode == 0
    assert daemon.read_text() == '{"debug": true}'


def test_pull_that_does_not_come_through_the_cache_is_a_failure(machine: Machine) -> None:
    machine.docker("20.10.24", through=False)
    attached = machine.attach()
    assert attached.returncode == 1
    assert "did not come through the cache" in attached.stderr


@pytest.mark.parametrize("tool", ["jq", "python3"])
def test_daemon_json_that_is_malformed_is_reported_and_left_alone(machine: Machine, tool: str) -> None:
    machine.docker("24.0.7")
    machine.have(tool)
    daemon = machine.file("/etc/docker/daemon.json")
    daemon.parent.mkdir(parents=True)
    daemon.write_text('{"debug": tru')
    attached = machine.attach()
    assert attached.returncode == 1
    assert "daemon.json is not valid JSON" in attached.stderr
    assert daemon.read_text() == '{"debug": tru'


def test_cache_that_does_not_answer_changes_nothing(machine: Machine) -> None:
    machine.docker("20.10.24")
    attached = machine.attach(cache="127.0.0.1:1")
    assert attached.returncode == 1
    assert "no cache answers" in attached.stderr
    assert machine.snapshot() == {}


def test_machine_without_engines_is_a_failure(machine: Machine) -> None:
    attached = machine.attach()
    assert attached.returncode == 1
    assert "no container engine found" in attached.stderr


def test_script_without_an_address_of_a_cache_fails(machine: Machine) -> None:
    alone = subprocess.run(
        ["dash", str(ATTACH_SCRIPT)], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert alone.returncode == 1
    assert "--cache HOST" in alone.stderr


def test_detach_without_an_earlier_attach_changes_nothing(machine: Machine) -> None:
    assert "nothing to change" in machine.attach("--detach").stdout


def test_shellcheck_finds_no_fault_in_the_script() -> None:
    require("shellcheck")
    checked = subprocess.run(["shellcheck", "-s", "sh", str(ATTACH_SCRIPT)], capture_output=True, text=True)
    assert checked.stdout == ""

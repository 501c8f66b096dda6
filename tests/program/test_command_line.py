"""The command line against a running cache, with the stand-in Hub as its registry."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hubcache.operate import ca
from support.cli import run
from support.damage import flip_bit
from support.paths import ADDON
from support.ports import free_port
from support.program import Program, running_program
from support.standin import Hub, random_bytes
from support.stores import blob_files
from typer.testing import Result

LAYER = random_bytes(100_000, "debian")


class CommandLine:
    """The command line for the cache of a program."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, *arguments: str, code: int = 0, **environment: str) -> Result:
        """Run a command, which must end with this exit code."""
        variables = {"HUBCACHE_DIR": str(self.program.store), "HUBCACHE_STATUS": f"127.0.0.1:{self.program.status}"}
        done = run(*arguments, **variables | environment)
        assert done.exit_code == code, done.output
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Return the JSON that a command prints."""
        done = self(*arguments, "--json", code=code)
        return json.loads(done.stdout)

    def findings(self, *arguments: str, code: int = 0) -> dict[str, str]:
        """Return the findings of the doctor that are not `ok`, by check."""
        report = self.json("doctor", *arguments, code=code)
        return {
            each["check"]: f"{each['state']}: {each['text']}" for each in report["findings"] if each["state"] != "ok"
        }

    def pull(self, repository: str, tag: str) -> None:
        """Pull an image at the mirror's port."""
        client = self.program.client("mirror")
        manifest = json.loads(client.manifest(tag, repo=repository).body)
        for blob in (manifest["config"], *manifest["layers"]):
            assert client.blob(blob["digest"], repo=repository).status == 200
        client.wait_until_stored()


@pytest.fixture(scope="module")
def hubcache() -> Iterator[CommandLine]:
    """A cache that has stored debian:12, with a capacity that no disk has."""
    with Hub() as hub:
        hub.image("library/hello-world", "latest", [random_bytes(1000, "hello")])
        hub.image("library/debian", "12", [LAYER])
        with running_program(hub, hubcache_size="900T") as program:
            command_line = CommandLine(program)
            command_line.pull("library/debian", "12")
            yield command_line


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy", "HUBCACHE_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_status_shows_the_store(hubcache: CommandLine) -> None:
    assert f"store:     {hubcache.program.store}\n" in hubcache("status").stdout
    report = hubcache.json("status")
    assert report["store"]["objects"] >= 3
    assert {(each["kind"], each["port"]) for each in report["listeners"]} == {
        ("proxy", hubcache.program.proxy),
        ("mirror", hubcache.program.mirror),
        ("status", hubcache.program.status),
    }


def test_top_prints_reports(hubcache: CommandLine) -> None:
    lines = hubcache("top", "--count", "2", "--interval", "0.1", "--json").stdout.splitlines()
    assert [json.loads(line)["store"]["directory"] for line in lines] == [str(hubcache.program.store)] * 2


def test_stored_image_is_listed_and_shown(hubcache: CommandLine) -> None:
    assert hubcache("ls", "debian").stdout.splitlines()[1].startswith("debian:12  ")
    (image,) = hubcache.json("ls", "debian:12")["images"]
    assert image["complete"]
    shown = hubcache.json("show", "debian:12")
    assert [len(manifest["blobs"]) for manifest in shown["manifests"]] == [2]
    assert "linux/amd64" in hubcache("show", "debian:12").stdout
    assert "is not stored" in hubcache("show", "debian:99", code=4).stderr


def test_pin_protects_an_image_from_a_purge(hubcache: CommandLine) -> None:
    hubcache("pin", "debian:12")
    assert "pinned" in hubcache("ls", "debian").stdout
    assert "is pinned" in hubcache("purge", "debian:12", code=4).stderr
    hubcache("unpin", "debian:12")
    assert "is not pinned" in hubcache("unpin", "debian:12", code=4).stderr


def test_purged_image_is_no_longer_listed(hubcache: CommandLine) -> None:
    hubcache.program.hub.image("library/gone", "1", [random_bytes(1000, "gone")])
    hubcache.pull("library/gone", "1")
    assert "gone:1: removed 3 objects, " in hubcache("purge", "gon*").stdout
    hubcache("ls", "gone", code=4)
    assert "is not stored" in hubcache("purge", "gone:1", code=4).stderr


def test_damage_is_found_and_repaired(hubcache: CommandLine) -> None:
    assert " good" in hubcache("verify").stdout
    (layer,) = (path for path in blob_files(hubcache.program.store) if path.stat().st_size == len(LAYER))
    flip_bit(layer)
    assert " 1 damaged, " in hubcache("verify", code=1).stdout
    lines = [json.loads(line) for line in hubcache("verify", "--repair", "--json").stdout.splitlines()]
    assert [line["state"] for line in lines if line.get("state", "good") != "good"] == ["repaired"]
    hubcache("verify")


def test_commands_run_as_a_program_of_their_own(hubcache: CommandLine) -> None:
    command = [sys.executable, "-m", "hubcache.cli", "status", "--json", "--dir", str(hubcache.program.store)]
    done = subprocess.run(command, cwd=ADDON, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["process"]["pid"] == hubcache.program.pid
    assert done.stderr == ""


class TestDoctor:
    """hubcache doctor, with one thing broken in each test."""

    def test_sound_cache_has_no_problem(self, hubcache: CommandLine) -> None:
        """Its capacity is a warning, as no disk is that large; this machine may cause others."""
        found = hubcache.findings()
        assert found.pop("disk").startswith("warning: hubcache_size is 900.0 TiB, but the file system of the store ")
        assert all(text.startswith("warning: ") for text in found.values())
        shown = hubcache("doctor").stdout
        assert "ok       mirror pull    hello-world:latest in " in shown
        assert ": manifest from the store, 2 blobs from the store\n" in shown
        assert "\n0 problems, " in shown

    def test_other_certificate_than_that_of_the_proxy_is_a_problem(self, hubcache: CommandLine, tmp_path: Path) -> None:
        file = hubcache.program.confdir / ca.CERTIFICATE_FILE
        own = file.read_bytes()
        ca.ensure_ca(tmp_path / "ca", ["docker.io"], datetime.now(UTC))
        file.write_bytes((tmp_path / "ca" / ca.CERTIFICATE_FILE).read_bytes())
        try:
            found = hubcache.findings(code=1)
        finally:
            file.write_bytes(own)
        assert "presents a certificate for registry-1.docker.io" in found["interception"]
        assert found["interception"].startswith("problem: ")
        problems = {check for check, text in found.items() if text.startswith("problem: ")}
        assert problems == {"interception", "proxy pull"}

    def test_registry_that_is_down_is_a_problem_for_what_is_not_stored(self, hubcache: CommandLine) -> None:
        hubcache.program.hub.stop()
        try:
            found = hubcache.findings("--image", "alpine:3", code=1)
        finally:
            hubcache.program.reset()
        for check in ("mirror pull", "proxy pull", "registry"):
            assert found[check].startswith("problem: "), found

    def test_cache_on_another_machine_is_checked_by_its_address(self, hubcache: CommandLine) -> None:
        found = hubcache.findings("--cache", f"127.0.0.1:{hubcache.program.mirror}")
        assert all(
            text.startswith(("warning: no configuration file", "skipped: no container")) for text in found.values()
        )

    def test_closed_mirror_port_is_a_problem(self, hubcache: CommandLine) -> None:
        proxy = str(hubcache.program.proxy)
        found = hubcache.findings("--cache", f"127.0.0.1:{free_port()}", "--proxy-port", proxy, code=1)
        assert "does not answer: Connection refused" in found["mirror port"]
        assert found["CA certificate"].startswith("skipped: ")

    def test_cache_that_does_not_run_is_a_problem(self, hubcache: CommandLine, tmp_path: Path) -> None:
        done = hubcache("doctor", "--dir", str(tmp_path), code=1, HUBCACHE_STATUS=f"127.0.0.1:{free_port()}")
        first, second, *_ = done.stdout.splitlines()
        assert first.startswith(
            f"problem  cache          no cache runs with the store {tmp_path}, which has no control"
        )
        assert second.strip().startswith("to do: start it")

    def test_cache_with_another_store_is_named(self, hubcache: CommandLine, tmp_path: Path) -> None:
        done = hubcache("doctor", "--dir", str(tmp_path), code=1)
        assert f"to do: a cache with the store {hubcache.program.store} runs: name it with --dir" in done.stdout


def test_doctor_finds_an_unusable_store() -> None:
    """Such a cache has no control socket; its status listener says why."""
    with Hub() as hub:
        hub.image("library/hello-world", "latest", [random_bytes(1000, "hello")])
        with running_program(hub, hubcache_dir=os.devnull + "/store") as program:
            program.store = Path(os.devnull) / "store"
            found = CommandLine(program).findings(code=1)
    assert found["cache"].startswith("problem: it runs, but stores nothing: ")

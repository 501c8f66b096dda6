"""hubcache.yaml of the running program: precedence at start, and what SIGHUP changes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.http_client import wait_until
from support.program import HUB_HOST, Program
from support.standin import Hub


@pytest.fixture
def program(tmp_path: Path, hub: Hub) -> Iterator[Program]:
    """A program that is not started yet; most of its options are in its config file, not on the command line."""
    program = Program(tmp_path, hub, {})
    yield program
    program.stop(signal.SIGKILL)


def capacity(program: Program) -> int:
    return int(program.health["store"]["capacity"])


def is_served(program: Program) -> bool:
    try:
        return program.client("mirror").request("GET", "/v2/").status == 200
    except ConnectionError:
        return False


def hang_up(program: Program, text: str) -> None:
    (program.confdir / "hubcache.yaml").write_text(text)
    os.kill(program.pid, signal.SIGHUP)


def test_file_is_read_at_start_and_command_line_wins(program: Program) -> None:
    (program.confdir / "config.yaml").write_text("hubcache_size: 1G\nhubcache_admit_after: 5\n")
    (program.confdir / "hubcache.yaml").write_text("size: 2G\nstop_within: 60s\nregistries: [ghcr.io]\n")
    program.start()
    assert capacity(program) == 2 << 30
    assert program.client("mirror").request("GET", "/v2/", host=HUB_HOST).status == 200
    program.stop()  # the command line sets `hubcache_stop_within` to one second
    program.assert_no_errors()


def test_variable_wins_over_the_file_and_loses_to_the_command_line(program: Program) -> None:
    (program.confdir / "hubcache.yaml").write_text("size: 2G\nadmit_after: 3\n")
    program.environment = {"HUBCACHE_SIZE": "1G", "HUBCACHE_DIR": "/nowhere", "HUBCACHE_PINS": "debian:12 alpine:3"}
    program.start()
    assert (capacity(program), program.health["store"]["directory"]) == (1 << 30, str(program.store))
    hang_up(program, "size: 3G\nadmit_after: 4\n")
    program.wait_for_log("SIGHUP")
    assert "changed: hubcache_admit_after=4" in program.log
    assert capacity(program) == 1 << 30
    program.stop()
    program.assert_no_errors()


def test_invalid_variable_ends_the_start_with_one_line(program: Program) -> None:
    program.environment = {"HUBCACHE_SIZE": "much"}
    program.launch()
    assert program.wait_for_exit() == 1
    assert "hubcache_size: 'much' is not a size" in program.log


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("hubcache.yaml", "sise: 5G\n", "hubcache.yaml: sise is not an option; did you mean size?"),
        ("hubcache.yaml", "size: much\n", "hubcache_size: 'much' is not a size"),
        ("", "", "hubcache_config: /nowhere/own.yaml does not exist"),
    ],
)
def test_invalid_file_ends_the_start_with_one_line(program: Program, name: str, text: str, message: str) -> None:
    if name:
        (program.confdir / name).write_text(text)
    else:
        program.command += ["--set", "hubcache_config=/nowhere/own.yaml"]
    program.launch()
    assert program.wait_for_exit() == 1
    (line,) = [each for each in program.log.splitlines() if "hubcache: " in each]
    assert message in line
    assert "Traceback" not in program.log


def test_sighup_applies_changes_and_names_those_that_need_a_restart(program: Program) -> None:
    program.start()
    hang_up(program, "size: 3G\nworkers: 2\ntag_ttl: 5m\n")  # the command line sets `workers`
    program.wait_for_log("hubcache.yaml: changed: hubcache_size=3G, hubcache_tag_ttl=5m")
    assert capacity(program) == 3 << 30
    hang_up(program, "size: 3G\ntag_ttl: soon\n")
    program.wait_for_log("hubcache: SIGHUP: nothing changed: hubcache_tag_ttl: 'soon' is not a duration")
    hang_up(program, "size: 3G\nmin_freee: 1G\n")
    program.wait_for_log("hubcache.yaml: min_freee is not an option; did you mean min_free?")
    assert program.log.count("SIGHUP: nothing changed: ") == 2
    assert capacity(program) == 3 << 30
    hang_up(program, "")
    program.wait_for_log("changed: hubcache_size=50G, hubcache_tag_ttl=1m")
    assert capacity(program) == 50 << 30
    program.assert_no_errors()


def test_workers_apply_changes_too_and_a_new_worker_gets_no_unchecked_text(program: Program) -> None:
    program.command += ["--set", "hubcache_workers=2"]
    index = program.command.index("hubcache_workers=1")
    del program.command[index - 1 : index + 1]
    program.start()
    hang_up(program, "clients: [192.0.2.0/24]\n")
    program.wait_for_log("changed: hubcache_clients=['192.0.2.0/24']")
    wait_until(lambda: not any(is_served(program) for _ in range(5)))
    hang_up(program, "")
    program.wait_for_log("changed: hubcache_clients=[]")
    wait_until(lambda: all(is_served(program) for _ in range(5)))
    (program.confdir / "hubcache.yaml").write_text("nonsense: 1\n")
    (first, *_) = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGKILL)
    program.wait_for_log("and is started again")
    wait_until(lambda: program.metric("hubcache_workers") == 2)
    assert "nonsense" not in program.log
    program.assert_no_errors()


@pytest.mark.parametrize("options", [{}, {"flow_detail": "2"}], ids=["direct", "mitmproxy"])
def test_added_registry_is_cached_at_once(tmp_path: Path, hub: Hub, options: dict[str, str]) -> None:
    registries = [f"{HUB_HOST}={hub.url()}", f"registry.example={hub.url()}"]
    program = Program(tmp_path, hub, options | {"hubcache_registries": registries})  # creates a CA for both
    for each in registries:
        index = program.command.index(f"hubcache_registries={each}")
        del program.command[index - 1 : index + 1]
    (program.confdir / "hubcache.yaml").write_text(f"registries: ['{registries[0]}']\n")
    program.start()
    try:
        hang_up(program, f"registries: {registries}\n")
        program.wait_for_log("changed: hubcache_registries=")
        assert program.client("proxy").request("GET", "/v2/", host="registry.example").status == 401
        hang_up(program, f"registries: {[*registries, 'ghcr.io']}\n")
        program.wait_for_log("SIGHUP: nothing changed: ")
        assert "cannot sign for ghcr.io" in program.log
        assert program.client("proxy").request("GET", "/v2/", host="registry.example").status == 401
        program.assert_no_errors()
    finally:
        program.stop()

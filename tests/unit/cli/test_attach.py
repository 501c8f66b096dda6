"""The command `attach`: the arguments with which it runs setup/attach.sh."""

import os
import subprocess
import sys

import pytest
from hubcache.cli import attach
from support.cli import ControlStandIn, Replaced, Reply, run, status_report
from support.paths import ADDON


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of the script that would run."""
    ran: list[str] = []

    def execv(path: str, arguments: list[str]) -> None:
        assert (path, arguments[1]) == ("/bin/sh", str(attach.SCRIPT))
        ran[:] = arguments[2:]
        raise Replaced(path)

    monkeypatch.setattr(os, "execv", execv)
    return ran


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        (["cache.lan"], ["--cache", "cache.lan"]),
        (["cache.lan:80", "--dry-run"], ["--mirror", "cache.lan:80", "--dry-run"]),
        (["[::1]:80"], ["--mirror", "[::1]:80"]),
        (["cache.lan", "--proxy", "cache.lan:3128"], ["--cache", "cache.lan", "--proxy", "cache.lan:3128"]),
        (["--cache", "cache.lan", "--proxy"], ["--cache", "cache.lan", "--proxy"]),
        (["--detach", "--dry-run"], ["--detach", "--dry-run"]),
        (["--mirror", "h:1", "--image", "debian"], ["--mirror", "h:1", "--image", "debian"]),
    ],
)
def test_arguments_are_those_of_the_script(script: list[str], arguments: list[str], passed: list[str]) -> None:
    assert isinstance(run("attach", *arguments).exception, Replaced)
    assert script == passed


def test_local_cache_is_attached_without_an_address(control: ControlStandIn, script: list[str]) -> None:
    listeners = [{"kind": "proxy", "host": "", "port": 8080}, {"kind": "mirror", "host": "", "port": 5555}]
    control.replies["GET /v1/status"] = Reply(status_report(listeners=listeners))
    assert isinstance(control.run("attach", "--dry-run").exception, Replaced)
    assert script == ["--mirror", "127.0.0.1:5555", "--dry-run"]


def test_local_cache_without_a_mirror_is_an_error(control: ControlStandIn) -> None:
    control.replies["GET /v1/status"] = Reply(status_report())
    done = control.run("attach")
    assert (done.exit_code, "has no mirror port" in done.stderr) == (2, True)


def test_missing_address_is_an_error() -> None:
    done = run("attach", "--dry-run")
    assert (done.exit_code, done.stderr) == (2, "hubcache: which cache? hubcache attach HOST\n")


def test_real_script_runs() -> None:
    command = [sys.executable, "-m", "hubcache.cli", "attach", "127.0.0.1:1", "--dry-run"]
    done = subprocess.run(command, cwd=ADDON, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("attach: no cache answers at http://127.0.0.1:1/v2/\n")

"""The command `serve`: the arguments with which it runs mitmdump or mitmweb."""

import os
import sys
from pathlib import Path

import pytest
from support.cli import Replaced, run
from support.paths import ADDON


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of the program that would run."""
    ran: list[str] = []

    def execv(path: str, arguments: list[str]) -> None:
        ran[:] = arguments
        raise Replaced(path)

    monkeypatch.setattr(os, "execv", execv)
    return ran


def serve(*arguments: str) -> None:
    assert isinstance(run("serve", *arguments).exception, Replaced)


def test_arguments_are_passed_on_in_their_order(program: list[str]) -> None:
    serve("--set", "hubcache_dir=/a b", "-q", "-mhttp", "--set=x=1", "file")
    mitmdump = str(Path(sys.executable).with_name("mitmdump"))
    script = str(ADDON / "cache.py")
    assert program[:5] == [mitmdump, "-s", script, "--set", "flow_detail=0"]
    assert program[5:] == ["--set", "hubcache_dir=/a b", "-q", "-mhttp", "--set=x=1", "file"]


@pytest.mark.parametrize("own", [["--set", "flow_detail=1"], ["--set=flow_detail=2"], ["--flow-detail", "3"]])
def test_log_has_a_line_for_each_request_only_if_wanted(program: list[str], own: list[str]) -> None:
    serve(*own)
    assert program[3:] == own


def test_web_runs_mitmweb(program: list[str]) -> None:
    serve("-q", "--web", "--web-port", "1")
    assert program[0].endswith("/mitmweb")
    assert program[3:] == ["-q", "--web-port", "1"]


@pytest.mark.parametrize(
    ("arguments", "proxy", "mirror"),
    [
        (["--proxy-port", "3128"], 3128, "registry-1.docker.io@5000"),
        (["--mirror-port=80"], 8080, "registry-1.docker.io@80"),
        (["--set", "hubcache_registries=ghcr.io=http", "--mirror-port", "80"], 8080, "ghcr.io@80"),
        (["--set=hubcache_registries=docker.io", "--mirror-port", "80"], 8080, "registry-1.docker.io@80"),
        (["--set=hubcache_registries=*", "--mirror-port", "80"], 8080, "registry-1.docker.io@80"),
        (
            ["--set=hubcache_registries=*.io", "--set", "hubcache_registries=ghcr.io", "--mirror-port=80"],
            8080,
            "ghcr.io@80",
        ),
    ],
)
def test_port_arguments_set_the_modes_of_mitmproxy(
    program: list[str], arguments: list[str], proxy: int, mirror: str
) -> None:
    serve(*arguments, "-q")
    assert program[-5:] == ["-q", "--mode", f"regular@{proxy}", "--mode", f"reverse:{mirror}"]
    assert not any("-port" in argument for argument in program)


@pytest.mark.parametrize("place", ["environment", "file", "named file"])
def test_mirrored_registry_is_the_first_of_the_configured_ones(
    program: list[str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = []
    if place == "environment":
        monkeypatch.setenv("HUBCACHE_REGISTRIES", "ghcr.io, docker.io")
    else:
        file = (
            tmp_path / "named.yaml" if place == "named file" else Path(os.environ["HOME"]) / ".mitmproxy/hubcache.yaml"
        )
        file.parent.mkdir(exist_ok=True)
        file.write_text("registries: ['*.io', ghcr.io]\n")
        named = ["--config", str(file)] if place == "named file" else []
    serve("--mirror-port", "80", *named)
    assert program[-1] == "reverse:ghcr.io@80"


@pytest.mark.parametrize("own", [["--mode", "regular"], ["-mregular"], ["--mode=regular"], ["--set", "mode=x"]])
def test_port_beside_a_mode_is_an_error(own: list[str]) -> None:
    done = run("serve", "--mirror-port", "80", *own)
    assert (done.exit_code, done.stdout) == (2, "")
    shown = "--set mode" if "--set" in own else own[0]
    assert done.stderr.startswith(f"hubcache: {shown} cannot be combined with --proxy-port or --mirror-port: ")


@pytest.mark.parametrize("port", ["65536", "x", "0", "-1", ""])
def test_invalid_port_is_an_error(port: str) -> None:
    done = run("serve", f"--mirror-port={port}")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"hubcache: --mirror-port: '{port}' is not a port number; expected 1 to 65535\n"


def test_port_without_a_number_is_an_error() -> None:
    assert run("serve", "--mirror-port").exit_code == 2


@pytest.mark.parametrize("arguments", [["--config", "/a b.yaml"], ["--config=/a b.yaml"]])
def test_config_file_is_an_option(program: list[str], arguments: list[str]) -> None:
    serve(*arguments, "-q")
    assert program[5:] == ["-q", "--set", "hubcache_config=/a b.yaml"]


def test_directory_is_an_option(program: list[str]) -> None:
    serve("--dir", "/a b")
    assert program[5:] == ["--set", "hubcache_dir=/a b"]


@pytest.mark.parametrize("name", ["--help", "-h"])
def test_help_runs_no_program(program: list[str], name: str) -> None:
    done = run("serve", name)
    assert (done.exit_code, program) == (0, [])
    assert "--mirror-port" in done.stdout


def test_missing_mitmproxy_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run("serve")
    assert (done.exit_code, done.stderr) == (
        1,
        f"hubcache: mitmdump is not installed beside {tmp_path}/python: install mitmproxy\n",
    )

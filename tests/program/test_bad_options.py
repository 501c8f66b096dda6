"""Bad option values, unknown option names and contradictory arguments end the start with one line."""

import signal
from collections.abc import Iterator
from pathlib import Path
from socket import create_server, socket

import pytest
from support.ports import free_port
from support.program import Program
from support.required import missing
from support.standin import Hub


def unusual_lines(program: Program) -> list[str]:
    """Return the log without the lines of every start; empty when nothing went wrong."""
    usual = ("Loading script", "listening at", "Error logged during startup")
    return [line for line in program.log.splitlines() if line and not any(words in line for words in usual)]


@pytest.fixture
def programs(tmp_path: Path, hub: Hub) -> Iterator[list[Program]]:
    """Programs that run side by side, because each start takes a second or two."""
    started: list[Program] = []
    yield started
    for program in started:
        program.stop(signal.SIGKILL)


@pytest.mark.parametrize(
    "bad",
    [
        [
            ("hubcache_size=much", "hubcache_size: 'much' is not a size"),
            ("hubcache_registries=http://x", "hubcache_registries: 'http://x'"),
            ("hubcache_registries=ghcr.io", "cannot sign for ghcr.io: to renew it, move "),
            ("hubcache_status=nonsense", "hubcache_status: 'nonsense' is not HOST:PORT"),
        ],
        [
            ("hubcache_tag_ttl=soon", "hubcache_tag_ttl: 'soon' is not a duration"),
            ("hubcache_tag_ttl=-1", "hubcache_tag_ttl: '-1' is not a duration"),
            ("hubcache_offline=maybe", "hubcache_offline"),
            ("hubcache_size=5g --set hubcache_size=6g", "hubcache_size"),
        ],
        [
            ("hubcache_sise=5g", "hubcache: hubcache_sise is not an option; did you mean hubcache_size?"),
            ("HUBCACHE_OFFLINE", "hubcache: HUBCACHE_OFFLINE is not an option; did you mean hubcache_offline?"),
            ("hubcache_admit_after=many", "hubcache_admit_after"),
            ("hubcache_mirror_certificate=/no/where.pem", "/no/where.pem cannot be read: No such file or directory"),
        ],
    ],
    ids=["text", "typed", "names"],
)
def test_bad_option_ends_the_start_with_one_line(
    programs: list[Program], tmp_path: Path, hub: Hub, bad: list[tuple[str, str]]
) -> None:
    for number, (setting, _) in enumerate(bad):
        directory = tmp_path / str(number)
        directory.mkdir()
        program = Program(directory, hub, {})
        name = setting.partition("=")[0]
        at = next((at for at, part in enumerate(program.command) if part.startswith(f"{name}=")), None)
        if at is not None:
            del program.command[at - 1 : at + 1]
        program.command += ["--set", *setting.split()]
        programs.append(program)
        program.launch()
    for program, (_, words) in zip(programs, bad, strict=True):
        assert program.wait_for_exit() == 1
        (line,) = unusual_lines(program)
        assert words in line
        assert "Traceback" not in program.log


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hubcache_sise: 5G\n", "hubcache_sise is not an option; did you mean hubcache_size?"),
        (
            "hubcache_half_life: 1.5\nhubcache_pins: debian\n",
            "hubcache_half_life: 1.5 is not of type str, and hubcache_pins: 'debian' is not of type sequence of str",
        ),
    ],
    ids=["name", "type"],
)
def test_bad_config_file_ends_the_start_with_one_line(
    programs: list[Program], tmp_path: Path, hub: Hub, text: str, message: str
) -> None:
    programs.append(program := Program(tmp_path, hub, {}))
    (program.confdir / "config.yaml").write_text(text)
    program.launch()
    assert program.wait_for_exit() == 1
    (line,) = unusual_lines(program)
    assert f"hubcache: {message}" in line


def test_config_file_may_have_numbers_and_text(programs: list[Program], tmp_path: Path, hub: Hub) -> None:
    programs.append(program := Program(tmp_path, hub, {}))
    text = "hubcache_size: 1G\nhubcache_tag_ttl: 600\nhubcache_half_life: 3d\nhubcache_admit_after: 3\n"
    (program.confdir / "config.yaml").write_text(text)
    program.start()
    assert program.health["store"]["capacity"] == 1 << 30


def test_status_address_in_use_ends_the_start_with_one_line(programs: list[Program], tmp_path: Path, hub: Hub) -> None:
    with create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        programs.append(program := Program(tmp_path, hub, {"hubcache_status": f"127.0.0.1:{port}"}))
        program.launch()
        assert program.wait_for_exit() == 1
    (line,) = unusual_lines(program)
    assert f"hubcache_status: cannot listen on 127.0.0.1:{port}" in line


def test_mirror_of_a_registry_that_is_not_configured_ends_the_start_with_one_line(
    programs: list[Program], tmp_path: Path, hub: Hub
) -> None:
    programs.append(program := Program(tmp_path, hub, {}, mirror_of="ghcr.io"))
    program.launch()
    assert program.wait_for_exit() == 1
    (line,) = unusual_lines(program)
    assert "ghcr.io is not in hubcache_registries" in line


def test_listeners_without_options_are_the_two_of_the_readme(programs: list[Program], tmp_path: Path, hub: Hub) -> None:
    """The proxy's port differs here, only because other programs often listen on 8080."""
    with socket() as probe:
        if probe.connect_ex(("127.0.0.1", 5000)) == 0:
            missing("something listens on port 5000 here")
    for workers in ("1", "2"):
        own = {"listen_port": str(port := free_port()), "hubcache_workers": workers}
        programs.append(program := Program(tmp_path / workers, hub, own))
        program.command = [part for part in program.command if part != "--mode" and "@" not in part]
        program.start()
        assert f"hubcache: proxy at 127.0.0.1:{port}" in program.log
        assert "hubcache: mirror at 127.0.0.1:5000" in program.log
        program.proxy, program.mirror = port, 5000
        assert program.client("proxy").request("GET", "/v2/").status == 401
        assert program.client("mirror").request("GET", "/v2/").status == 200
        if workers == "1":
            programs.append(second := Program(tmp_path / "second", hub, {"listen_port": str(free_port())}))
            second.command = [part for part in second.command if part != "--mode" and "@" not in part]
            second.launch()
            assert second.wait_for_exit() == 1
            assert "127.0.0.1:5000" in second.log
            assert "choose other ports with scripts/serve --proxy-port N --mirror-port N" in second.log
            assert "Traceback" not in second.log
        program.stop()

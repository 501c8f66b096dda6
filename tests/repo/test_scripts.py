"""scripts/serve, scripts/test and the set-up that they share, with stand-ins for Python and uv."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.required import require

SCRIPTS = REPOSITORY / "scripts"
BASH = shutil.which("bash") or "/bin/bash"
WORKS = """if [[ ${1-} != -m ]]; then echo "$0"; exit; fi
echo "$2 $(($# - 2)) ${*:3}"
[[ $PYTHONPATH == */addon ]] || echo "PYTHONPATH is $PYTHONPATH"
[[ ! -e /proc/$$/fd/9 ]] || echo lock held"""
"""Script of a stand-in for Python that passes every check: it prints its own path, which is what the checks print. With
`-m` it prints the module, and the number of arguments and the arguments."""
SERVES = "hubcache.cli 1 serve\n"
BROKEN_SHIM = 'echo "pyenv: $0: command not found" >&2; exit 127'

PROGRAMS = re.findall(r'^    "(\S+) ', (SCRIPTS / "test").read_text(), re.MULTILINE)
"""Programs that scripts/test installs when they are missing."""

FAKE_UV = r"""#!/bin/bash
target="${@: -1}"
echo "$*" >>"$UV_LOG"
case "$1" in
--version) echo "uv VERSION (stand-in)" ;;
venv) mkdir -p "$target/bin" && ln -sf "$UV_PYTHON_REAL" "$target/bin/python" ;;
export) touch "$target" ;;
python) printf '%s\n' "error: Failed to install" "  cause: ${UV_FAILS:-none}" >&2; exit 2 ;;
pip)
    if [[ $2 == freeze ]]; then
        case "$5" in */newest/*) echo "ruff==2" ;; *) echo "ruff==1" ;; esac
        exit
    fi
    bin=$(dirname "$6")
    echo 'echo half-made' >"$bin/mitmdump"
    if [[ -n ${UV_SLEEP:-} ]]; then sleep "$UV_SLEEP"; fi
    if [[ -n ${UV_FAILS:-} ]]; then printf 'error: %s\n' "$UV_FAILS" "no way" >&2; exit 2; fi
    ;;
esac
"""


def program(path: Path, body: str) -> Path:
    """Write an executable shell script, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body if body.startswith("#!") else f"#!{BASH}\n{body}\n")
    path.chmod(0o755)
    return path


def find_python(directory: Path, path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the discovery with `path` as the only directory for programs; it prints the Python that it chose."""
    command = f'set -euo pipefail; . "{SCRIPTS}/setup.sh"; find_python; echo "$python"'
    environment = {"PATH": str(path), "HOME": str(directory / "home"), **env}
    return subprocess.run([BASH, "-c", command], env=environment, capture_output=True, text=True, check=False)


class TestDiscovery:
    """The choice of a Python."""

    def test_shim_that_does_not_run_is_skipped(self, tmp_path: Path) -> None:
        program(tmp_path / "bin/python3.13", BROKEN_SHIM)
        good = program(tmp_path / "bin/python3.12", WORKS)
        program(tmp_path / "bin/python3", WORKS)
        assert find_python(tmp_path, tmp_path / "bin").stdout == f"{good}\n"

    def test_versioned_name_is_preferred_to_python3(self, tmp_path: Path) -> None:
        program(tmp_path / "bin/python3", WORKS)
        good = program(tmp_path / "bin/python3.14", WORKS)
        assert find_python(tmp_path, tmp_path / "bin").stdout == f"{good}\n"

    def test_python3_is_used_when_no_versioned_name_runs(self, tmp_path: Path) -> None:
        program(tmp_path / "bin/python3.12", BROKEN_SHIM)
        good = program(tmp_path / "bin/python3", WORKS)
        assert find_python(tmp_path, tmp_path / "bin").stdout == f"{good}\n"

    def test_pyenv_version_is_used_when_nothing_on_path_runs(self, tmp_path: Path) -> None:
        program(tmp_path / "bin/python3.13", BROKEN_SHIM)
        program(tmp_path / "home/.pyenv/versions/3.11.9/bin/python3.11", WORKS)
        program(tmp_path / "home/.pyenv/versions/3.12.1/bin/python3.12", WORKS)
        good = program(tmp_path / "home/.pyenv/versions/3.13.0/bin/python3.13", WORKS)
        assert find_python(tmp_path, tmp_path / "bin").stdout == f"{good}\n"

    def test_shim_on_path_leads_to_the_pyenv_of_another_home(self, tmp_path: Path) -> None:
        program(tmp_path / "other/.pyenv/shims/python3.12", BROKEN_SHIM)
        good = program(tmp_path / "other/.pyenv/versions/3.12.1/bin/python3.12", WORKS)
        assert find_python(tmp_path, tmp_path / "other/.pyenv/shims").stdout == f"{good}\n"

    def test_nothing_is_found_on_an_empty_path(self, tmp_path: Path) -> None:
        done = find_python(tmp_path, tmp_path / "bin")
        assert (done.returncode, done.stdout) == (0, "\n")

    def test_hubcache_python_is_preferred_to_path(self, tmp_path: Path) -> None:
        program(tmp_path / "bin/python3.13", WORKS)
        chosen = program(tmp_path / "elsewhere/mypython", WORKS)
        assert find_python(tmp_path, tmp_path / "bin", HUBCACHE_PYTHON=str(chosen)).stdout == f"{chosen}\n"

    @pytest.mark.parametrize("body", [None, BROKEN_SHIM, "exit 1"])
    def test_hubcache_python_that_does_not_run_is_an_error(self, tmp_path: Path, body: str | None) -> None:
        program(tmp_path / "bin/python3.13", WORKS)
        chosen = tmp_path / "mypython"
        if body is not None:
            program(chosen, body)
        done = find_python(tmp_path, tmp_path / "bin", HUBCACHE_PYTHON=str(chosen))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert f"HUBCACHE_PYTHON={chosen} is not a Python >= 3.12" in done.stderr

    def test_check_accepts_a_real_python(self, tmp_path: Path) -> None:
        done = find_python(tmp_path, tmp_path / "bin", HUBCACHE_PYTHON=sys.executable)
        assert done.stdout == f"{os.path.realpath(sys.executable)}\n"


class Checkout:
    """A repository with the real scripts, stand-ins for Python and uv, and a log of the calls to uv."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.root = directory, directory / "repository"
        shutil.copytree(SCRIPTS, self.root / "scripts", ignore=lambda directory, names: {"__pycache__"} & set(names))
        self.lock = self.root / "uv.lock"
        self.lock.write_text("one\n")
        version = re.search(r"^uv_version=(\S+)$", (SCRIPTS / "setup.sh").read_text(), re.MULTILINE)
        assert version is not None
        program(self.root / ".uv/tool/bin/uv", FAKE_UV.replace("VERSION", version[1]))
        self.python = program(directory / "bin/python3.13", WORKS)
        self.calls = directory / "uv.log"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.directory}/bin:/usr/bin:/bin",
            "HOME": str(self.directory / "home"),
            "UV_LOG": str(self.calls),
            "UV_PYTHON_REAL": str(self.python),
        }

    def installs(self) -> int:
        """Return how often packages were installed."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return sum(line.startswith("pip sync") for line in lines)

    def start(self, *arguments: str, messages: int = subprocess.PIPE, **env: str) -> "subprocess.Popen[str]":
        """Start scripts/serve; `messages` is the descriptor for its standard error."""
        return subprocess.Popen(
            [BASH, str(self.root / "scripts/serve"), *arguments],
            env=self.environment | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            start_new_session=True,
        )

    def serve(self, *arguments: str, **env: str) -> tuple[int, str, str]:
        """Return exit status, output and messages of scripts/serve."""
        process = self.start(*arguments, **env)
        output, messages = process.communicate(timeout=60)
        return process.returncode, output, messages

    def prepare(self, group: str, **env: str) -> None:
        command = f'set -euo pipefail; . "{self.root}/scripts/setup.sh"; prepare {group}'
        subprocess.run([BASH, "-c", command], env=self.environment | env, capture_output=True, check=True)

    def restamp(self) -> None:
        """Make the stamp match after the Python of .venv was replaced."""
        stamp = self.root / ".venv/hubcache-stamp"
        lines = stamp.read_text().splitlines()
        stamp.write_text("\n".join([*lines[:2], os.path.realpath(sys.executable), *lines[3:]]) + "\n")

    def group(self) -> str:
        return (self.root / ".venv/hubcache-stamp").read_text().splitlines()[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


class TestServe:
    """Set-up by scripts/serve before the program runs."""

    def test_first_start_sets_up_and_passes_its_arguments_on(self, checkout: Checkout) -> None:
        status, output, messages = checkout.serve("--set", "hubcache_dir=/a b", "-q")
        assert (status, output) == (0, "hubcache.cli 4 serve --set hubcache_dir=/a b -q\n")
        assert messages.splitlines() == [
            f"hubcache: making .venv with {checkout.python}",
            "hubcache: reading uv.lock",
            "hubcache: installing the locked dependencies",
        ]

    def test_second_start_does_no_set_up(self, checkout: Checkout) -> None:
        checkout.serve()
        calls = checkout.calls.read_text()
        status, output, messages = checkout.serve("--web", "-q")
        assert (status, messages) == (0, "")
        assert output == "hubcache.cli 3 serve --web -q\n"
        assert checkout.calls.read_text() == calls

    def test_link_from_another_directory_works_with_stdin_closed(self, checkout: Checkout) -> None:
        link = checkout.directory / "links/hubcache"
        link.parent.mkdir()
        link.symlink_to("../repository/scripts/serve")
        command = [BASH, "-c", "links/hubcache -q <&-"]
        done = subprocess.run(
            command, env=checkout.environment, cwd=checkout.directory, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode() == "hubcache.cli 2 serve -q\n"

    def test_changed_lock_file_is_installed(self, checkout: Checkout) -> None:
        checkout.serve()
        checkout.lock.write_text("two\n")
        assert checkout.serve()[0] == 0
        assert checkout.installs() == 2

    def test_moved_repository_needs_no_set_up(self, checkout: Checkout) -> None:
        checkout.serve()
        checkout.root = checkout.root.rename(checkout.directory / "moved")
        assert checkout.serve()[1:] == (SERVES, "")

    def test_python_that_was_removed_is_replaced(self, checkout: Checkout) -> None:
        checkout.serve()
        checkout.python.unlink()
        checkout.python = program(checkout.directory / "bin/python3.12", WORKS)
        assert checkout.serve()[0] == 0
        assert checkout.installs() == 2

    def test_another_hubcache_python_makes_another_environment(self, checkout: Checkout) -> None:
        checkout.serve()
        chosen = program(checkout.directory / "chosen", WORKS)
        for _ in range(2):
            assert checkout.serve(HUBCACHE_PYTHON=str(chosen))[0] == 0
        assert checkout.installs() == 2

    def test_failed_set_up_prints_its_reason_in_one_line_and_keeps_the_environment(self, checkout: Checkout) -> None:
        checkout.serve()
        checkout.lock.write_text("two\n")
        status, output, messages = checkout.serve(UV_FAILS="no network")
        assert (status, output) == (1, "")
        assert re.fullmatch(
            r"hubcache: failed: installing the locked dependencies: error: .*\(.*setup\.log\)",
            messages.splitlines()[-1],
        )
        checkout.lock.write_text("one\n")
        assert checkout.serve() == (0, SERVES, "")

    @pytest.mark.parametrize(
        ("output", "advice"),
        [
            ("cause: invalid peer certificate: UnknownIssuer", "set SSL_CERT_FILE to a PEM file with its CA"),
            ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "or UV_SYSTEM_CERTS=1 when"),
            ("failed to write: No space left on device (os error 28)", "no space left: free 500 MB in "),
            ("failed to create directory: Permission denied (os error 13)", "run this as the owner of "),
            ("cause: failed to lookup address information", "check the network, or set HTTPS_PROXY"),
        ],
    )
    def test_failed_set_up_says_what_to_do(self, checkout: Checkout, output: str, advice: str) -> None:
        status, _, messages = checkout.serve(UV_FAILS=output)
        last = messages.splitlines()[-1]
        assert status == 1
        assert last.startswith("hubcache: failed: installing the locked dependencies: error: no way; ")
        assert advice in last

    def test_failed_download_of_python_says_how_to_name_one(self, checkout: Checkout) -> None:
        program(checkout.python, "exit 1")
        for name in ("python3.14", "python3.12", "python3.15", "python3"):
            program(checkout.directory / "bin" / name, "exit 1")
        status, _, messages = checkout.serve(UV_FAILS="dns error")
        last = messages.splitlines()[-1]
        assert status == 1
        assert last.startswith("hubcache: failed: no Python >= 3.12 found: downloading 3.13: error: Failed to install;")
        assert "no connection: check the network" in last
        assert "or set HUBCACHE_PYTHON to the path of one" in last

    def test_directory_that_cannot_be_written_is_named_with_the_cause(self, checkout: Checkout) -> None:
        shutil.rmtree(checkout.root / ".uv")
        (checkout.root / ".uv").write_text("a file")
        status, output, messages = checkout.serve()
        (line,) = messages.splitlines()
        assert (status, output) == (1, "")
        assert line.startswith(f"hubcache: cannot set up in {checkout.root}: ")
        assert "File exists" in line

    def test_elapsed_seconds_of_a_step_are_shown_on_a_terminal(self, checkout: Checkout) -> None:
        ours, theirs = pty.openpty()
        with checkout.start(messages=theirs, UV_SLEEP="2.5") as process:
            os.close(theirs)
            shown = b""
            while not re.search(rb"\r  \d+ s", shown):  # at the end of the program, reading raises `OSError`
                shown += os.read(ours, 1000)
            process.communicate(timeout=60)
        os.close(ours)
        assert process.returncode == 0
        # The shell subtracts whole seconds of the clock, so that the first number may be 2 soon after one second.
        assert re.search(rb"hubcache: installing the locked dependencies\r\n\r  [1-9] s", shown)

    def test_two_starts_at_once_set_up_once(self, checkout: Checkout) -> None:
        first, second = checkout.start(UV_SLEEP="1"), checkout.start(UV_SLEEP="1")
        messages = []
        for process in (first, second):
            output, printed = process.communicate(timeout=60)
            assert (process.returncode, output) == (0, SERVES)
            messages.append(printed)
        assert checkout.installs() == 1
        assert sorted(messages)[-1] == "hubcache: waiting for another set-up to end\n"

    def test_killed_set_up_is_repeated(self, checkout: Checkout) -> None:
        killed = checkout.start(UV_SLEEP="60")
        half_made = checkout.root / ".uv/venv/bin/mitmdump"
        limit = time.monotonic() + 30
        while not half_made.exists():
            assert time.monotonic() < limit
            time.sleep(0.02)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate(timeout=60)
        assert checkout.serve()[:2] == (0, SERVES)

    def test_environment_without_a_stamp_is_replaced(self, checkout: Checkout) -> None:
        program(checkout.root / ".venv/bin/mitmdump", "echo wrong")
        program(checkout.root / ".venv/bin/python", WORKS)
        assert checkout.serve()[1].startswith(SERVES)


class TestHubcache:
    """scripts/hubcache, and the help of scripts/serve."""

    def test_command_line_is_set_up_once_and_gets_all_arguments(self, checkout: Checkout) -> None:
        def run(*arguments: str) -> tuple[str, str]:
            command = [BASH, str(checkout.root / "scripts/hubcache"), *arguments]
            done = subprocess.run(command, env=checkout.environment, capture_output=True, text=True, check=True)
            return done.stdout, done.stderr

        output, messages = run("show", "a b")
        assert (output, messages.count("\n")) == ("hubcache.cli 2 show a b\n", 3)
        assert run("--help") == ("hubcache.cli 1 --help\n", "")
        assert checkout.installs() == 1

    def test_help_needs_no_set_up(self, checkout: Checkout) -> None:
        status, output, messages = checkout.serve("--help")
        assert (status, messages) == (0, "")
        assert "--mirror-port N" in output
        assert not (checkout.root / ".venv").exists()


class TestGroups:
    """scripts/serve and scripts/test share one environment."""

    def test_environment_of_the_tests_is_used_to_serve(self, checkout: Checkout) -> None:
        checkout.prepare("dev")
        assert checkout.serve()[2] == ""
        venv = checkout.root / ".uv/venv"
        assert f"export --locked --group dev --python {venv}/bin/python " in checkout.calls.read_text()

    def test_tests_add_to_the_environment_of_serve(self, checkout: Checkout) -> None:
        checkout.serve()
        assert checkout.group() == "serve"
        checkout.prepare("dev")
        assert checkout.group() == "dev"

    def test_demo_of_a_fleet_adds_to_the_environment_of_serve(self, checkout: Checkout) -> None:
        checkout.serve()
        status, output, _ = checkout.serve("--fleet-demo", "3", "--set", "hubcache_size=1G")
        assert (status, output) == (0, "fleetdemo 4 --fleet-demo 3 --set hubcache_size=1G\n")
        assert checkout.group() == "fleet-demo"
        assert "--no-dev --group fleet-demo" in checkout.calls.read_text()
        installs = checkout.installs()
        assert checkout.serve()[1] == SERVES
        assert checkout.serve("--fleet-demo=3")[0] == 0
        assert checkout.installs() == installs
        checkout.lock.write_text("two\n")
        assert checkout.serve()[0] == 0
        assert checkout.group() == "fleet-demo"

    def test_environment_of_the_tests_is_used_for_the_demo_of_a_fleet(self, checkout: Checkout) -> None:
        checkout.prepare("dev")
        installs = checkout.installs()
        assert checkout.serve("--fleet-demo", "2")[0] == 0
        assert checkout.installs() == installs

    def test_serve_keeps_the_group_of_the_tests_when_the_lock_file_changes(self, checkout: Checkout) -> None:
        checkout.prepare("dev")
        checkout.lock.write_text("two\n")
        assert checkout.serve()[0] == 0
        assert checkout.group() == "dev"


REPORT = """<testsuites><testsuite>
<testcase file="tests/a.py" classname="tests.a" name="test_fast" time="0.5"/>
<testcase file="tests/a.py" classname="tests.a.TestB" name="test_slow[1]" time="9.25"/>
<testcase file="tests/a.py" classname="tests.a" name="test_skipped" time="0"><skipped/></testcase>
FAILURE</testsuite></testsuites>"""
FAILURE = """<testcase file="tests/a.py" classname="tests.a" name="test_bad" time="1">
<failure message="AssertionError: 1&#10;2"/></testcase>"""
WRITES_REPORT = """for argument; do [[ $argument != --junit-xml=* ]] || printf %s 'REPORT' >"${argument#*=}"; done"""


class TestTest:
    """scripts/test, whose programs are stand-ins."""

    def run(
        self, checkout: Checkout, *arguments: str, uv_fails: str = "", **failing: int
    ) -> tuple[int, list[str], str]:
        """Return exit status, the lines printed and the messages; `failing` are exit statuses of programs."""
        checkout.prepare("dev")
        for venv in (".venv", ".uv/newest"):
            for name in ("ruff", "mypy", "pytest"):
                status = failing.get(name, 0)
                body = f'echo "ran {name} $1"; exit {status}'
                if name == "pytest" and status < 2:  # with a higher status pytest ended without running tests
                    report = REPORT.replace("FAILURE", FAILURE if status else "")
                    body = WRITES_REPORT.replace("REPORT", report) + "\n" + body
                program(checkout.root / venv / "bin" / name, body)
        (checkout.root / ".venv/bin/python").unlink()
        (checkout.root / ".venv/bin/python").symlink_to(sys.executable)
        checkout.restamp()
        for name in PROGRAMS:
            program(checkout.directory / "bin" / name, "exit 0")
        command = [BASH, str(checkout.root / "scripts/test"), *arguments]
        environment = checkout.environment | {"UV_FAILS": uv_fails}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.split("\n")[:-1], done.stderr

    def test_all_stages_run_and_the_summary_counts_tests(self, checkout: Checkout) -> None:
        code, lines, messages = self.run(checkout)
        ran = [line for line in lines if line.startswith("ran ")]
        assert (code, ran) == (
            0,
            ["ran ruff check", "ran ruff format", "ran mypy ", "ran pytest -m", "ran pytest -n", "ran pytest -m"],
        ), messages
        assert lines[6] == "slowest tests:"
        assert lines[7] == "     9.2 s  tests/a.py::TestB::test_slow[1]"
        stages = [line.rsplit("  ", 1)[0].split() for line in lines if re.search(r"\d s$", line) and "::" not in line]
        assert stages == [
            ["style", "ok"],
            ["format", "ok"],
            ["types", "ok"],
            ["fast", "tests", "ok", "2", "0", "1"],
            ["with", "two", "workers", "ok", "2", "0", "1"],
            ["end-to-end", "tests", "ok", "2", "0", "1"],
        ]
        assert "failed:" not in lines

    def test_stages_after_a_failed_one_run_and_the_failure_is_repeated_at_the_end(self, checkout: Checkout) -> None:
        code, lines, _ = self.run(checkout, mypy=2, pytest=1)
        assert (code, len([line for line in lines if line.startswith("ran ")])) == (1, 6)
        assert lines[lines.index("failed:") :] == [
            "failed:",
            "  types: exit status 2, see above",
            *("  fast tests", "    tests/a.py::test_bad: AssertionError: 1"),
            *("  with two workers", "    tests/a.py::test_bad: AssertionError: 1"),
            *("  end-to-end tests", "    tests/a.py::test_bad: AssertionError: 1"),
        ]

    def test_stage_without_a_report_is_a_failure(self, checkout: Checkout) -> None:
        code, lines, _ = self.run(checkout, "tests/a.py", pytest=3)
        assert (code, lines[-1]) == (1, "  chosen tests: exit status 3, see above")

    def test_newest_runs_the_fast_stages_in_a_separate_environment(self, checkout: Checkout) -> None:
        code, lines, messages = self.run(checkout, "--newest")
        ran = [line for line in lines if line.startswith("ran ")]
        assert (code, ran) == (0, ["ran ruff check", "ran ruff format", "ran mypy ", "ran pytest -m"]), messages
        newest = checkout.root / ".uv/newest"
        assert (
            f"pip install --upgrade --compile-bytecode --python {newest}/bin/python "
            "--requirements pyproject.toml --group dev"
        ) in checkout.calls.read_text()
        assert [line for line in messages.splitlines() if "ruff==" in line] == ["locked: ruff==1", "newest: ruff==2"]
        assert checkout.lock.read_text() == "one\n"

    def test_failed_installation_of_the_newest_releases_is_one_line(self, checkout: Checkout) -> None:
        code, lines, messages = self.run(checkout, "--newest", uv_fails="no network")
        assert (code, lines) == (1, [])
        assert messages.splitlines()[-1].startswith("hubcache: failed: installing the newest releases: error: ")


def test_scripts_contain_no_url_and_are_executable() -> None:
    files = [SCRIPTS / "serve", SCRIPTS / "hubcache", SCRIPTS / "test", SCRIPTS / "setup.sh", REPOSITORY / ".ci/run"]
    assert [path for path in files if "://" in path.read_text()] == []
    assert [path for path in files if path.name != "setup.sh" and not os.access(path, os.X_OK)] == []


@pytest.mark.parametrize("name", ["hubcache", "serve"])
def test_shellcheck_finds_nothing(name: str) -> None:
    require("shellcheck")
    subprocess.run(["shellcheck", "-x", "-P", str(SCRIPTS), str(SCRIPTS / name)], check=True, timeout=60)

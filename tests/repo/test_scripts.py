"""scripts/serve and the set-up that it shares with scripts/test, with stand-ins for Python and uv."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.paths import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"
BASH = shutil.which("bash") or "/bin/bash"
WORKS = 'echo "$0"'
"""A Python that passes every check: it prints its own path, as our checks do."""
BROKEN_SHIM = 'echo "pyenv: $0: command not found" >&2; exit 127'

PROGRAMS = re.findall(r'^    "(\S+) ', (SCRIPTS / "test").read_text(), re.MULTILINE)
"""What scripts/test has installed where it is missing."""

FAKE_UV = r"""#!/bin/bash
target="${@: -1}"
echo "$*" >>"$UV_LOG"
case "$1" in
--version) echo "uv VERSION (stand-in)" ;;
venv) mkdir -p "$target/bin" && ln -s "$UV_PYTHON_REAL" "$target/bin/python" ;;
export) touch "$target" ;;
pip)
    bin=$(dirname "$6")
    echo 'echo half-made' >"$bin/mitmdump"
    if [[ -n ${UV_SLEEP:-} ]]; then sleep "$UV_SLEEP"; fi
    if [[ -n ${UV_FAILS:-} ]]; then printf 'error: %s\n' "$UV_FAILS" "no way" >&2; exit 2; fi
    for name in mitmdump mitmweb; do
        printf '%s\n' '#!/bin/bash' 'echo "${0##*/} $# $*"; [[ ! -e /proc/$$/fd/9 ]] || echo lock held' >"$bin/$name"
        chmod +x "$bin/$name"
    done
    ;;
esac
"""


def program(path: Path, body: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body if body.startswith("#!") else f"#!{BASH}\n{body}\n")
    path.chmod(0o755)
    return path


def find_python(place: Path, path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the discovery with nothing but *path* to find programs in; prints the Python that it chose."""
    command = f'set -euo pipefail; . "{SCRIPTS}/setup.sh"; find_python; echo "$python"'
    environment = {"PATH": str(path), "HOME": str(place / "home"), **env}
    return subprocess.run([BASH, "-c", command], env=environment, capture_output=True, text=True, check=False)


class TestDiscovery:
    """Which Python is used."""

    def test_passes_over_a_shim_that_does_not_run(self, tmp_path: Path) -> None:
        program(tmp_path / "bin/python3.13", BROKEN_SHIM)
        good = program(tmp_path / "bin/python3.12", WORKS)
        program(tmp_path / "bin/python3", WORKS)
        assert find_python(tmp_path, tmp_path / "bin").stdout == f"{good}\n"

    def test_prefers_a_versioned_name_to_python3(self, tmp_path: Path) -> None:
        program(tmp_path / "bin/python3", WORKS)
        good = program(tmp_path / "bin/python3.14", WORKS)
        assert find_python(tmp_path, tmp_path / "bin").stdout == f"{good}\n"

    def test_takes_python3_when_no_versioned_name_runs(self, tmp_path: Path) -> None:
        program(tmp_path / "bin/python3.12", BROKEN_SHIM)
        good = program(tmp_path / "bin/python3", WORKS)
        assert find_python(tmp_path, tmp_path / "bin").stdout == f"{good}\n"

    def test_takes_what_pyenv_has_when_nothing_on_path_runs(self, tmp_path: Path) -> None:
        program(tmp_path / "bin/python3.13", BROKEN_SHIM)
        program(tmp_path / "home/.pyenv/versions/3.11.9/bin/python3.11", WORKS)
        program(tmp_path / "home/.pyenv/versions/3.12.1/bin/python3.12", WORKS)
        good = program(tmp_path / "home/.pyenv/versions/3.13.0/bin/python3.13", WORKS)
        assert find_python(tmp_path, tmp_path / "bin").stdout == f"{good}\n"

    def test_follows_a_shim_on_path_to_the_pyenv_of_another_home(self, tmp_path: Path) -> None:
        program(tmp_path / "other/.pyenv/shims/python3.12", BROKEN_SHIM)
        good = program(tmp_path / "other/.pyenv/versions/3.12.1/bin/python3.12", WORKS)
        assert find_python(tmp_path, tmp_path / "other/.pyenv/shims").stdout == f"{good}\n"

    def test_finds_nothing_where_nothing_is(self, tmp_path: Path) -> None:
        done = find_python(tmp_path, tmp_path / "bin")
        assert (done.returncode, done.stdout) == (0, "\n")

    def test_the_chosen_python_wins(self, tmp_path: Path) -> None:
        program(tmp_path / "bin/python3.13", WORKS)
        chosen = program(tmp_path / "elsewhere/mypython", WORKS)
        assert find_python(tmp_path, tmp_path / "bin", HUBCACHE_PYTHON=str(chosen)).stdout == f"{chosen}\n"

    @pytest.mark.parametrize("body", [None, BROKEN_SHIM, "exit 1"])
    def test_a_wrong_choice_is_an_error_and_not_replaced(self, tmp_path: Path, body: str | None) -> None:
        program(tmp_path / "bin/python3.13", WORKS)
        chosen = tmp_path / "mypython"
        if body is not None:
            program(chosen, body)
        done = find_python(tmp_path, tmp_path / "bin", HUBCACHE_PYTHON=str(chosen))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert f"HUBCACHE_PYTHON={chosen} is not a Python >= 3.12" in done.stderr

    def test_the_check_accepts_this_python(self, tmp_path: Path) -> None:
        done = find_python(tmp_path, tmp_path / "bin", HUBCACHE_PYTHON=sys.executable)
        assert done.stdout == f"{os.path.realpath(sys.executable)}\n"


class Checkout:
    """A repository with our scripts, a Python and a uv that are stand-ins, and what uv was asked."""

    def __init__(self, room: Path) -> None:
        self.room, self.root = room, room / "repository"
        shutil.copytree(SCRIPTS, self.root / "scripts", ignore=lambda directory, names: {"__pycache__"} & set(names))
        self.lock = self.root / "uv.lock"
        self.lock.write_text("one\n")
        version = re.search(r"^uv_version=(\S+)$", (SCRIPTS / "setup.sh").read_text(), re.MULTILINE)
        assert version is not None
        program(self.root / ".uv/tool/bin/uv", FAKE_UV.replace("VERSION", version[1]))
        self.python = program(room / "bin/python3.13", WORKS)
        self.calls = room / "uv.log"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.room}/bin:/usr/bin:/bin",
            "HOME": str(self.room / "home"),
            "UV_LOG": str(self.calls),
            "UV_PYTHON_REAL": str(self.python),
        }

    def installs(self) -> int:
        """How often packages were installed."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return sum(line.startswith("pip sync") for line in lines)

    def start(self, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [BASH, str(self.root / "scripts/serve"), *arguments],
            env=self.environment | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def serve(self, *arguments: str, **env: str) -> tuple[int, str, str]:
        """Exit status, output and messages of scripts/serve."""
        process = self.start(*arguments, **env)
        output, messages = process.communicate(timeout=60)
        return process.returncode, output, messages

    def prepare(self, group: str, **env: str) -> None:
        command = f'set -euo pipefail; . "{self.root}/scripts/setup.sh"; prepare {group}'
        subprocess.run([BASH, "-c", command], env=self.environment | env, capture_output=True, check=True)

    def group(self) -> str:
        return (self.root / ".venv/hubcache-stamp").read_text().splitlines()[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


class TestServe:
    """What scripts/serve does before the program runs."""

    def test_sets_up_and_hands_its_arguments_on(self, checkout: Checkout) -> None:
        status, output, messages = checkout.serve("--set", "hubcache_dir=/a b", "-q")
        script = checkout.root / "addon/cache.py"
        assert (status, output) == (0, f"mitmdump 5 -s {script} --set hubcache_dir=/a b -q\n")
        assert messages.splitlines() == [
            f"hubcache: making .venv with {checkout.python}",
            "hubcache: reading uv.lock",
            "hubcache: installing the locked dependencies",
        ]

    def test_a_second_start_does_no_set_up(self, checkout: Checkout) -> None:
        checkout.serve()
        asked = checkout.calls.read_text()
        status, output, messages = checkout.serve("--web", "-q")
        assert (status, messages) == (0, "")
        assert output == f"mitmweb 3 -s {checkout.root}/addon/cache.py -q\n"
        assert checkout.calls.read_text() == asked

    def test_works_through_a_link_from_another_place_with_stdin_closed(self, checkout: Checkout) -> None:
        link = checkout.room / "links/hubcache"
        link.parent.mkdir()
        link.symlink_to("../repository/scripts/serve")
        command = [BASH, "-c", "links/hubcache -q <&-"]
        done = subprocess.run(command, env=checkout.environment, cwd=checkout.room, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode() == f"mitmdump 3 -s {checkout.root}/addon/cache.py -q\n"

    def test_a_changed_lock_file_is_installed(self, checkout: Checkout) -> None:
        checkout.serve()
        checkout.lock.write_text("two\n")
        assert checkout.serve()[0] == 0
        assert checkout.installs() == 2

    def test_a_moved_repository_needs_no_set_up(self, checkout: Checkout) -> None:
        checkout.serve()
        checkout.root = checkout.root.rename(checkout.room / "moved")
        assert checkout.serve()[1:] == (f"mitmdump 2 -s {checkout.root}/addon/cache.py\n", "")

    def test_a_python_that_is_gone_is_replaced(self, checkout: Checkout) -> None:
        checkout.serve()
        checkout.python.unlink()
        checkout.python = program(checkout.room / "bin/python3.12", WORKS)
        assert checkout.serve()[0] == 0
        assert checkout.installs() == 2

    def test_another_chosen_python_makes_another_environment(self, checkout: Checkout) -> None:
        checkout.serve()
        chosen = program(checkout.room / "chosen", WORKS)
        for _ in range(2):
            assert checkout.serve(HUBCACHE_PYTHON=str(chosen))[0] == 0
        assert checkout.installs() == 2

    def test_a_failed_set_up_says_why_in_one_line_and_breaks_nothing(self, checkout: Checkout) -> None:
        checkout.serve()
        checkout.lock.write_text("two\n")
        status, output, messages = checkout.serve(UV_FAILS="no network")
        assert (status, output) == (1, "")
        assert re.fullmatch(
            r"hubcache: failed: installing the locked dependencies: error: .*\(.*setup\.log\)",
            messages.splitlines()[-1],
        )
        checkout.lock.write_text("one\n")
        assert checkout.serve() == (0, f"mitmdump 2 -s {checkout.root}/addon/cache.py\n", "")

    def test_two_starts_at_once_set_up_once(self, checkout: Checkout) -> None:
        first, second = checkout.start(UV_SLEEP="1"), checkout.start(UV_SLEEP="1")
        messages = []
        for process in (first, second):
            output, said = process.communicate(timeout=60)
            assert (process.returncode, output) == (0, f"mitmdump 2 -s {checkout.root}/addon/cache.py\n")
            messages.append(said)
        assert checkout.installs() == 1
        assert sorted(messages)[-1] == "hubcache: waiting for another set-up to end\n"

    def test_a_killed_set_up_is_done_again(self, checkout: Checkout) -> None:
        killed = checkout.start(UV_SLEEP="60")
        half_made = checkout.root / ".uv/venv/bin/mitmdump"
        limit = time.monotonic() + 30
        while not half_made.exists():
            assert time.monotonic() < limit
            time.sleep(0.02)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate(timeout=60)
        assert checkout.serve()[:2] == (0, f"mitmdump 2 -s {checkout.root}/addon/cache.py\n")

    def test_an_environment_of_unknown_origin_is_replaced(self, checkout: Checkout) -> None:
        program(checkout.root / ".venv/bin/mitmdump", "echo wrong")
        program(checkout.root / ".venv/bin/python", WORKS)
        assert checkout.serve()[1].startswith("mitmdump 2 ")


class TestGroups:
    """scripts/serve and scripts/test share one environment."""

    def test_the_environment_of_the_tests_will_do_to_serve(self, checkout: Checkout) -> None:
        checkout.prepare("dev")
        assert checkout.serve()[2] == ""
        venv = checkout.root / ".uv/venv"
        assert f"export --locked --group dev --python {venv}/bin/python " in checkout.calls.read_text()

    def test_the_tests_add_to_the_environment_of_serve(self, checkout: Checkout) -> None:
        checkout.serve()
        assert checkout.group() == "serve"
        checkout.prepare("dev")
        assert checkout.group() == "dev"

    def test_serve_keeps_what_the_tests_need_when_the_lock_file_changes(self, checkout: Checkout) -> None:
        checkout.prepare("dev")
        checkout.lock.write_text("two\n")
        assert checkout.serve()[0] == 0
        assert checkout.group() == "dev"


class TestTest:
    """scripts/test, whose programs are stand-ins."""

    def run(self, checkout: Checkout, **exits: int) -> tuple[int, list[str], str]:
        """Exit status, the programs that ran, and what was said."""
        checkout.prepare("dev")
        for name in ("ruff", "mypy", "pytest"):
            program(checkout.root / ".venv/bin" / name, f'echo "ran {name}"; exit {exits.get(name, 0)}')
        for name in PROGRAMS:
            program(checkout.room / "bin" / name, "exit 0")
        command = [BASH, str(checkout.root / "scripts/test")]
        done = subprocess.run(command, env=checkout.environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.split("\n")[:-1], done.stderr

    def test_all_checks_run_and_it_ends_well(self, checkout: Checkout) -> None:
        code, ran, messages = self.run(checkout)
        assert (code, ran) == (0, ["ran ruff", "ran ruff", "ran mypy", "ran pytest", "ran pytest", "ran pytest"])
        assert "failed" not in messages

    def test_a_failed_check_hides_none_of_those_after_it_and_is_told_at_the_end(self, checkout: Checkout) -> None:
        code, ran, messages = self.run(checkout, mypy=1, pytest=1)
        assert (code, len(ran)) == (1, 6)
        assert messages.splitlines()[-4] == "hubcache: failed: mypy"
        assert messages.splitlines()[-1] == "hubcache: failed: pytest -m e2e -n 2 --dist loadfile"


def test_scripts_name_no_host() -> None:
    files = [SCRIPTS / "serve", SCRIPTS / "test", SCRIPTS / "setup.sh", REPOSITORY / ".ci/run"]
    assert [path for path in files if "://" in path.read_text()] == []
    assert [path for path in files if path.name != "setup.sh" and not os.access(path, os.X_OK)] == []

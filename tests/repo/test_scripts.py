"""The Python that scripts choose, and rules for all scripts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import BASH, SCRIPTS, WORKS, program
from support.paths import REPOSITORY
from support.required import require

BROKEN_SHIM = 'echo "pyenv: $0: command not found" >&2; exit 127'


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


def test_scripts_contain_no_url_and_are_executable() -> None:
    files = [SCRIPTS / "serve", SCRIPTS / "hubcache", SCRIPTS / "test", SCRIPTS / "setup.sh", REPOSITORY / ".ci/run"]
    assert [path for path in files if "://" in path.read_text()] == []
    assert [path for path in files if path.name != "setup.sh" and not os.access(path, os.X_OK)] == []


@pytest.mark.parametrize("name", ["hubcache", "serve"])
def test_shellcheck_finds_nothing(name: str) -> None:
    require("shellcheck")
    subprocess.run(["shellcheck", "-x", "-P", str(SCRIPTS), str(SCRIPTS / name)], check=True, timeout=60)

"""A repository with the real scripts, and stand-ins for Python and uv."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.paths import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"
BASH = shutil.which("bash") or "/bin/bash"
WORKS = """if [[ ${1-} != -m ]]; then echo "$0"; exit; fi
echo "$2 $(($# - 2)) ${*:3}"
[[ $PYTHONPATH == */addon ]] || echo "PYTHONPATH is $PYTHONPATH"
[[ ! -e /proc/$$/fd/9 ]] || echo lock held"""
"""Script of a stand-in for Python that passes every check: it prints its own path, which is what the checks print. With
`-m` it prints the module, and the number of arguments and the arguments."""
SERVES = "hubcache.cli 1 serve\n"

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


def checkout_fixture() -> Any:
    """Return the fixture `checkout`, a repository before its set-up."""

    @pytest.fixture
    def checkout(tmp_path: Path) -> Checkout:
        return Checkout(tmp_path)

    return checkout

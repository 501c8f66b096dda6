"""Runs modules of this package in processes of their own."""

import os
import subprocess
import sys


def module_command(name: str, *arguments: object) -> list[str]:
    """The command line that runs `soaklib.<name>` with these arguments."""
    return [sys.executable, "-m", f"soaklib.{name}", *map(str, arguments)]


def module_environment() -> dict[str, str]:
    """This process's environment, with an import path that has all that can be imported here."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def run_module(name: str, *arguments: object, timeout: float) -> "subprocess.CompletedProcess[str]":
    """Run `soaklib.<name>` to its end and capture its output.

    Raises `subprocess.TimeoutExpired` when it takes longer than `timeout` seconds.
    """
    return subprocess.run(
        module_command(name, *arguments),
        env=module_environment(),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )

"""Skips tests whose requirements this machine does not meet."""

import os
import shutil
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip the test, or fail it if CI=true, where every requirement must be met."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def require(*programs: str) -> None:
    """Skip the test, or fail it in CI, unless all `programs` are installed."""
    if absent := [program for program in programs if shutil.which(program) is None]:
        missing(f"not installed: {', '.join(absent)}")


def require_root() -> None:
    """Skip the test, or fail it in CI, unless it runs as root."""
    if os.geteuid() != 0:
        missing("needs root")

"""Reads the program's version from pyproject.toml, the one place that names it."""

import tomllib
from functools import cache
from pathlib import Path

PROJECT_FILE = Path(__file__).resolve().parents[3] / "pyproject.toml"

UNKNOWN = "unknown"
"""The version of a copy of addon/ without the rest of the repository."""


@cache
def version() -> str:
    """Return the version, such as `1.0.0`, or `UNKNOWN` when there is no pyproject.toml."""
    try:
        text = PROJECT_FILE.read_text()
    except FileNotFoundError:
        return UNKNOWN
    return str(tomllib.loads(text)["project"]["version"])

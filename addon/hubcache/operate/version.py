"""Reads the program's version from pyproject.toml, the one place that names it, or from an installed package."""

import tomllib
from functools import cache
from importlib import metadata

from . import installation

PROJECT_FILE = installation.PACKAGE.parents[1] / "pyproject.toml"

UNKNOWN = "unknown"
"""The version of a copy of addon/ without the rest of the repository."""


@cache
def version() -> str:
    """Return the version, such as `1.0.0`, or `UNKNOWN` when there is no pyproject.toml."""
    if installation.is_installed():
        return metadata.version("hubcache")
    try:
        text = PROJECT_FILE.read_text()
    except FileNotFoundError:
        return UNKNOWN
    return str(tomllib.loads(text)["project"]["version"])

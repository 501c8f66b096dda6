"""Finds the files of this installation: a checkout of the repository, or a package that a package manager installed."""

import os
from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED_SCRIPTS = PACKAGE / "scripts"
"""The directory that only an installed package has: a wheel contains the scripts of addon/ in it."""


def is_installed() -> bool:
    """Whether this is an installed package and not a checkout."""
    return INSTALLED_SCRIPTS.is_dir()


def script(name: str) -> Path:
    """Return the path of `cache.py`, which mitmproxy loads as an addon, or of `worker.py`, which workers run."""
    return (INSTALLED_SCRIPTS if is_installed() else PACKAGE.parent) / name


def ca_directory() -> Path:
    """Return the directory of the CA unless mitmproxy's option `confdir` names another.

    A checkout has it in `certs/`. An installed package may belong to root and is replaced by upgrades, so it has it in
    the directory that systemd made for the service's state (`STATE_DIRECTORY`, systemd.exec(5)), else in the directory
    for the user's data. Not beside the store: that is in a cache directory, which may be emptied, and clients trust
    the CA.
    """
    if not is_installed():
        return PACKAGE.parents[1] / "certs"
    of_service = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return (Path(of_service) if of_service else platformdirs.user_data_path("hubcache")) / "ca"

"""Finds uv, which the set-up of the repository installs."""

import shutil
from pathlib import Path

from support.paths import REPOSITORY
from support.required import missing


def uv() -> Path:
    """Return the path of uv; skips the test if there is none. In a work tree, .venv may be a link to another one's."""
    for root in (REPOSITORY, (REPOSITORY / ".venv").resolve().parent):
        if (path := root / ".uv/tool/bin/uv").is_file():
            return path
    return Path(shutil.which("uv") or missing("not installed: uv"))

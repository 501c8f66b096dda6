"""The files for deployment, and the ports and variables that they may use."""

from pathlib import Path
from typing import Any

from hubcache.operate.options import OPTIONS
from ruamel.yaml import YAML

from support.paths import REPOSITORY

DEPLOY = REPOSITORY / "scripts/deploy"
KUBERNETES = DEPLOY / "kubernetes"
PORTS = {8080, 5000, 9180}
VARIABLES = {each.name.upper() for each in OPTIONS}


def load(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return [document for document in YAML(typ="safe", pure=True).load_all(path.read_text()) if document]

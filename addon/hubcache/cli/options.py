"""The options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from .client import ControlClient
from .configuration import find_store
from .errors import CommandError

_COMPLETION_SECONDS = 2.0

Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        envvar="HUBCACHE_DIR",
        metavar="DIRECTORY",
        help="Directory of the cache's store; by default the one that hubcache.yaml or the platform names.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]


def connect(directory: Path | None) -> ControlClient:
    """Return a client of the cache whose store the option `--dir` or the configuration names."""
    return ControlClient(find_store(directory))


def complete_image(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of stored images that begin with `incomplete`, for the shell; none if the cache does not run."""
    directory = context.params.get("directory")
    try:
        client = connect(directory if isinstance(directory, Path) else None)
        images = client.get("/v1/images", seconds=_COMPLETION_SECONDS)["images"]
    except CommandError:
        return []
    return sorted({name for image in images if (name := str(image["name"])).startswith(incomplete)})


Image = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE", help="Such as debian:12 or ghcr.io/owner/name@sha256:...", autocompletion=complete_image
    ),
]
Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE", help="Such as debian:12 or ghcr.io/owner/name:tag.", autocompletion=complete_image),
]

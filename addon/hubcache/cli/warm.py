"""Fetches images into the store before clients ask for them: the command `warm`."""

import os
import platform as machine
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import FAILURES, CommandError, UsageError
from .image_lists import ImageListError, images_of_pods, read_image_list
from .options import Directory, Json, complete_image, connect
from .output import Output
from .warm_display import WarmDisplay
from .yaml_documents import MAX_BYTES

_KUBECTL_SECONDS = 120.0
_ARCHITECTURES = {
    **{"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "armv6l": "arm/v6", "i686": "386"},
    **{"loongarch64": "loong64"},
}
"""Architectures as Go and OCI name them, by the name that `uname -m` prints, where these differ."""

Platforms = Annotated[
    list[str],
    typer.Option(
        "--platform",
        metavar="OS/ARCH",
        help="Such as linux/arm64; may be repeated. By default that of this machine.",
        show_default=False,
    ),
]


def warm(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Such as debian:12.", autocompletion=complete_image)
    ] = [],  # noqa: B006 - typer copies it
    files: Annotated[
        list[str],
        typer.Option(
            *("-f", "--file"),
            metavar="FILE",
            help="A list of images, a compose file or Kubernetes manifests; - is standard input. May be repeated.",
        ),
    ] = [],  # noqa: B006
    cluster: Annotated[
        bool, typer.Option("--cluster", help="The images that the pods of the Kubernetes cluster of kubectl run.")
    ] = False,
    platforms: Platforms = [],  # noqa: B006
    all_platforms: Annotated[bool, typer.Option("--all-platforms", help="All platforms of each image.")] = False,
    pin: Annotated[bool, typer.Option("--pin", help="Pin the images, so that they are never removed.")] = False,
    directory: Directory = None,
    is_json: Json = False,
) -> None:
    """Fetch images into the store, so that clients do not wait for their registry.

    Clients come first: their downloads get slots before those of this command. The rate limit of a registry may be used
    up; its cost is reported at the end.
    """
    if all_platforms and platforms:
        raise UsageError("--platform and --all-platforms exclude each other")
    named = [*images, *(name for file in files for name in _read_list(file))]
    named += _running_images() if cluster else []
    if not named:
        raise UsageError("name an image, a file with images (-f FILE), or --cluster")
    body: dict[str, Any] = {"images": list(dict.fromkeys(named)), "keep": pin}
    body["platforms"] = None if all_platforms else platforms or [default_platform()]
    output = Output(is_json)
    client = connect(directory)
    summary: dict[str, Any] = {}
    skipped = set[str]()
    with WarmDisplay(output) as display:
        for event in client.stream("/v1/warm", body):
            output.event(event)
            display.show(event)
            if event.get("state") == "skipped":
                skipped.add(event["image"])
            summary = event
    display.show_summary(summary)
    if summary["failed"] or skipped & set(images):  # a list may name images that the cache need not serve
        raise typer.Exit(FAILURES)


def default_platform() -> str:
    """Return the platform of containers that this machine runs."""
    name = machine.machine().lower()
    return f"linux/{_ARCHITECTURES.get(name, name)}"


def _read_list(file: str) -> list[str]:
    """Return the images that a file names; raises `UsageError`."""
    try:
        if file == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
        return read_image_list(data.decode(), file, os.environ)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8") from error
    except ImageListError as error:
        raise UsageError(str(error)) from error


def _running_images() -> list[str]:
    """Return the images of all pods of the cluster; raises `CommandError`."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise CommandError("--cluster needs kubectl, which is not installed or not in PATH")
    command = [kubectl, "get", "pods", "--all-namespaces", "--output", "json"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_KUBECTL_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"kubectl did not answer within {_KUBECTL_SECONDS:.0f} seconds") from error
    except OSError as error:
        raise CommandError(f"kubectl cannot be started: {error.strerror or error}") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise CommandError(f"kubectl failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    try:
        found = images_of_pods(done.stdout.decode(errors="replace"))
    except ImageListError as error:
        raise CommandError(str(error)) from error
    if not found:
        raise CommandError("the cluster runs no pods")
    return found

"""Attaches the container engines of this machine to a cache: the command `attach`, which runs `setup/attach.sh`."""

import os
from typing import Annotated, NoReturn

import typer

from ..operate.installation import PACKAGE
from .errors import CommandError, UnreachableError, UsageError
from .options import connect

SCRIPT = PACKAGE / "setup" / "attach.sh"
_SHELL = "/bin/sh"
_ADDRESSES = ("--cache", "--mirror", "--detach")
"""Arguments of the script with which it needs no address from here."""

PASSED_ON = {
    "--proxy [HOST:PORT]": "attach Docker Engine by the proxy (logged-in pulls, pushes, other registries)",
    "--all-registries": "send pulls from all registries to the mirror, not only those from Docker Hub",
    "--dry-run": "show what would be changed, and change nothing",
    "--no-pull": "do not prove it with a pull",
    "--image IMAGE": "the image to pull for that",
    "--detach": "restore all files that this command changed",
}
"""Arguments of the script that the command passes on, with their meanings."""

_HELP = """Attach the container engines of this machine to a cache.

It changes the configuration of docker, containerd, podman and others, proves it with a pull, and can undo it.
Further arguments:"""


def attach(
    context: typer.Context,
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="HOST[:PORT]", help="The cache's mirror; the port is 5000 by default. Without it: the local cache."
        ),
    ] = None,
) -> None:
    arguments = list(context.args)
    if address is not None and address.startswith("-"):
        arguments.insert(0, address)
        address = None
    if address is not None:
        arguments = ["--mirror" if _has_port(address) else "--cache", address, *arguments]
    elif not any(argument in _ADDRESSES for argument in arguments):
        arguments = ["--mirror", local_mirror(), *arguments]
    run_script(arguments)


attach.__doc__ = _HELP + "".join(f"\n\n- {argument}: {meaning}." for argument, meaning in PASSED_ON.items())


def run_script(arguments: list[str]) -> NoReturn:
    """Replace this process by the script."""
    try:
        os.execv(_SHELL, [_SHELL, str(SCRIPT), *arguments])  # noqa: S606 - no user's text is read by a shell
    except OSError as error:
        raise CommandError(f"{SCRIPT} cannot be run: {error.strerror or error}") from error


def local_mirror() -> str:
    """Return HOST:PORT of the mirror of the cache on this machine; raises `UsageError` if it does not run."""
    try:
        listeners = connect(None).get("/v1/status")["listeners"]
    except UnreachableError as error:
        raise UsageError("which cache? hubcache attach HOST") from error
    port = next((each["port"] for each in listeners if each["kind"] == "mirror"), None)
    if port is None:
        raise UsageError("the cache on this machine has no mirror port; see hubcache attach --help for --proxy")
    return f"127.0.0.1:{port}"


def _has_port(address: str) -> bool:
    return address.rpartition(":")[2].isdecimal() and (address.count(":") == 1 or "]" in address)

"""Finds out what is wrong with a cache, its network or a client, and says what to do: the command `doctor`."""

from typing import Annotated

import typer

from ..oci.errors import RegistryError
from ..oci.image_name import ImageName
from .configuration import find_store
from .errors import FAILURES, UsageError
from .options import Directory, Json
from .output import Output
from .text import counted

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "skipped": "dim"}
_INDENT = " " * 24


def doctor(
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="Check the cache on another machine, and the container engines of this one; PORT is the mirror's.",
        ),
    ] = None,
    proxy_port: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=65535, help="Port of the proxy, with --cache.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGE",
            help="Image whose manifest, config and small layers are pulled to try the cache; hello-world by default.",
        ),
    ] = None,
    directory: Directory = None,
    is_json: Json = False,
) -> None:
    """Find out what is wrong with the cache, and what to do.

    The exit code is 1 if there is a problem. A pull of the image counts against the rate limit unless it is stored.
    """
    from .checks import diagnosis  # imports cryptography, which takes a tenth of a second

    if cache is None:
        findings = diagnosis.of_local_cache(find_store(directory), _parsed(image))
    else:
        findings = diagnosis.of_remote_cache(*_split(cache), proxy_port, _parsed(image))
    output = Output(is_json)
    found = []
    for finding in findings:
        found.append(finding)
        output.line(f"{finding.state:<8} {finding.check:<14} {finding.text}", _STYLES[finding.state])
        if finding.advice:
            output.line(f"{_INDENT}to do: {finding.advice}")
    problems, warnings = (sum(finding.state == state for finding in found) for state in ("problem", "warning"))
    output.document({"problems": problems, "warnings": warnings, "findings": [finding.report() for finding in found]})
    output.line()
    output.line(f"{counted(problems, 'problem')}, {counted(warnings, 'warning')}")
    if problems:
        raise typer.Exit(FAILURES)


def _parsed(name: str | None) -> ImageName | None:
    try:
        return None if name is None else ImageName.parse(name)
    except RegistryError as error:
        raise UsageError(f"--image {name}: {error.message}") from error


def _split(cache: str) -> tuple[str, int | None]:
    """Return host and port of `--cache`; an IPv6 address that has a port is in brackets."""
    host, colon, port = cache.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        host, port = cache, ""
    if not host or (port and not port.isdecimal()):
        raise UsageError(f"--cache {cache}: expected HOST or HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port) if port else None

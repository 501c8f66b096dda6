"""Runs the cache in mitmdump or mitmweb: the command `serve`, which `scripts/serve` runs after its set-up."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..oci.registry import HUB_HOST, HUB_NAMESPACES
from ..operate.installation import script
from .configuration import configured
from .errors import CommandError, UsageError

PROXY_PORT, MIRROR_PORT = 8080, 5000

_MODE = ("--mode", "-m")
_REGISTRIES = "hubcache_registries="
_MAX_PORT = 65535


def serve(
    context: typer.Context,
    web: Annotated[
        bool,
        typer.Option(
            "--web", help="Run mitmweb, which shows all requests in a browser, instead of mitmdump.", show_default=False
        ),
    ] = False,
    proxy_port: Annotated[
        str | None, typer.Option(metavar="N", help=f"Port of the proxy; {PROXY_PORT} by default.")
    ] = None,
    mirror_port: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help=f"Port of the registry mirror; {MIRROR_PORT} by default. It mirrors the first registry of "
            "hubcache_registries.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML file with options; by default ~/.mitmproxy/hubcache.yaml, if it exists."
        ),
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIRECTORY", help="Directory of the store, as hubcache_dir.")
    ] = None,
) -> None:
    """Run the cache until it is stopped.

    Options are set with --set NAME=VALUE. All other arguments are passed to mitmdump or mitmweb.
    """
    if "-h" in context.args:
        typer.echo(context.get_help())
        return
    arguments = list(context.args)
    if config is not None:
        arguments += ["--set", f"hubcache_config={config}"]
    if directory is not None:
        arguments += ["--set", f"hubcache_dir={directory}"]
    if proxy_port is not None or mirror_port is not None:
        arguments += _modes(arguments, _port("--proxy-port", proxy_port), _port("--mirror-port", mirror_port), config)
    if not web and not any("flow_detail" in argument or "--flow-detail" in argument for argument in arguments):
        arguments = ["--set", "flow_detail=0", *arguments]  # the log has a line for each pull: none for each request
    run("mitmweb" if web else "mitmdump", ["-s", str(script("cache.py")), *arguments])


def _port(option: str, text: str | None) -> int | None:
    """Return the port number that an option names."""
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= _MAX_PORT:
        raise UsageError(f"{option}: '{text}' is not a port number; expected 1 to {_MAX_PORT}")
    return int(text)


def _modes(arguments: Sequence[str], proxy_port: int | None, mirror_port: int | None, config: Path | None) -> list[str]:
    """Return mitmproxy's arguments for these ports; raises `UsageError` when others set the modes, too."""
    values = list(_set_values(arguments))
    modes = [argument for argument in arguments if argument.startswith(_MODE)]
    modes += ["--set mode" for value in values if value.startswith("mode=")]
    if modes:
        raise UsageError(
            f"{modes[0]} cannot be combined with --proxy-port or --mirror-port: name the ports in --mode alone"
        )
    registries = [value.removeprefix(_REGISTRIES) for value in values if value.startswith(_REGISTRIES)]
    host = mirrored_registry(registries or _configured_registries(config))
    return [
        *("--mode", f"regular@{proxy_port or PROXY_PORT}"),
        *("--mode", f"reverse:{host}@{mirror_port or MIRROR_PORT}"),
    ]


def _set_values(arguments: Sequence[str]) -> list[str]:
    """Return the values of all `--set` arguments."""
    found = [argument.removeprefix("--set=") for argument in arguments if argument.startswith("--set=")]
    return found + [value for name, value in pairwise(arguments) if name == "--set"]


def _configured_registries(config: Path | None) -> list[str]:
    values = configured("registries", config)
    if isinstance(values, str):
        return values.replace(",", " ").split()
    return [str(value) for value in values] if isinstance(values, list) else []


def mirrored_registry(registries: Sequence[str]) -> str:
    """Return the host of the registry that the mirror's port serves by default: the first one that is no pattern."""
    for text in registries:
        if text.strip() == "*":  # any registry: Docker Hub is the first one
            break
        if not text.startswith("*"):
            host = text.partition("=")[0]  # HOST or HOST=UPSTREAM_URL
            return HUB_HOST if host in HUB_NAMESPACES else host
    return HUB_HOST


def run(program: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by mitmdump or mitmweb, which are installed with the Python that runs this command."""
    places = (Path(sys.executable).parent, Path(sysconfig.get_path("scripts")))
    found = next((place / program for place in places if (place / program).is_file()), None) or shutil.which(program)
    if found is None:
        raise CommandError(f"{program} is not installed beside {sys.executable}: install mitmproxy")
    try:
        os.execv(found, [str(found), *arguments])  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise CommandError(f"{found} cannot be run: {error.strerror or error}") from error

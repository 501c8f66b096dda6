"""The command `hubcache` and its sub-commands."""

import os
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from ..operate.version import version
from .attach import attach
from .bash_completion import whole_names
from .doctor import doctor
from .errors import CommandError
from .export import export
from .fleet import fleet
from .images import list_images, pin, show, unpin
from .import_images import import_images
from .output import Output
from .purge import purge
from .serve import serve
from .status import status
from .top import top
from .verify import verify
from .warm import warm

_CACHE, _IMAGES, _PROGRAMS = "The cache", "Images", "Set-up"


class _Commands(TyperGroup):
    """A group that prints a `CommandError` as one line, and ends with its exit code."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        with whole_names(os.environ):
            return super().main(*arguments, **settings)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CommandError as error:
            Output().message(f"hubcache: {error}")
            raise typer.Exit(error.code) from error


app = typer.Typer(
    name="hubcache",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Shows and steers a running cache, starts one, and finds out what is wrong with it.",
)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    show_version: bool = typer.Option(False, "--version", help="Print the version of this command."),
) -> None:
    if show_version:
        typer.echo(f"hubcache {version()}")
        raise typer.Exit


COMMANDS: list[tuple[str, Callable[..., None], str]] = [
    ("status", status, _CACHE),
    ("top", top, _CACHE),
    ("fleet", fleet, _CACHE),
    ("verify", verify, _CACHE),
    ("doctor", doctor, _CACHE),
    ("ls", list_images, _IMAGES),
    ("show", show, _IMAGES),
    ("pin", pin, _IMAGES),
    ("unpin", unpin, _IMAGES),
    ("purge", purge, _IMAGES),
    ("warm", warm, _IMAGES),
    ("export", export, _IMAGES),
    ("import", import_images, _IMAGES),
]
"""Name, function and part of the help of each sub-command."""

for _name, _command, _panel in COMMANDS:
    app.command(_name, rich_help_panel=_panel)(_command)

_PASSES_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
# Without -h: the parser would find it in "-mhttp", which is an argument of mitmproxy.
app.command("serve", rich_help_panel=_PROGRAMS, context_settings=_PASSES_ON | {"help_option_names": ["--help"]})(serve)
app.command("attach", rich_help_panel=_PROGRAMS, context_settings=_PASSES_ON)(attach)


def main() -> None:
    """Run the command line of this process."""
    app(prog_name="hubcache")

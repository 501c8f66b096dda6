"""Errors that end a command, with its exit code and one sentence for the user."""

from typing import ClassVar

from ..oci.errors import HubcacheError

DONE = 0
FAILURES = 1
"""The command did its work, and parts of it failed: damage was found, or an image could not be fetched."""
USAGE = 2
UNREACHABLE = 3
REFUSED = 4


class CommandError(HubcacheError):
    """The command cannot do its work."""

    code: ClassVar[int] = FAILURES


class UsageError(CommandError):
    """The arguments do not fit together."""

    code = USAGE


class UnreachableError(CommandError):
    """The cache does not run, or this user cannot reach it."""

    code = UNREACHABLE


class RefusedError(CommandError):
    """The cache refused the request, or does not have what was asked for."""

    code = REFUSED

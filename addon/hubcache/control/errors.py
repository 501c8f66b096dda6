"""Errors of commands. The socket answers them with `status` and `{"error": message}`."""

from typing import ClassVar

from ..oci.errors import HubcacheError


class CommandError(HubcacheError):
    """A command that cannot be carried out; the message is one sentence for the user."""

    status: ClassVar[int] = 500


class InvalidCommand(CommandError):
    """The command itself is wrong: a field is missing, or a value is malformed."""

    status = 400


class NotKnown(CommandError):
    """The command names an image or content that the cache does not have."""

    status = 404


class Refused(CommandError):
    """The command is not permitted in the present state of the cache."""

    status = 409

"""The part of a body that is in a file: it is read into a buffer, or the kernel sends it to a socket."""

import errno
import os
from collections.abc import Callable
from typing import Protocol

_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class SendfileUnsupported(Exception):
    """The kernel cannot send this file to a socket (some network and FUSE file systems): it must be read."""


class FilePart(Protocol):
    """The bytes of a file that come next in a body, as far as they may be sent."""

    def read_into(self, buffer: memoryview) -> int:
        """Read the next bytes into a buffer; return their number, 0 when there are none yet.

        Raises a `HubcacheError` when they cannot be read.
        """

    def send_to(self, socket: int, most: int) -> int:
        """Have the kernel send at most `most` bytes to a socket; return their number, 0 when there are none yet.

        Raises `BlockingIOError` when the socket accepts none, other `OSError`s when the client has disconnected,
        `SendfileUnsupported`, and a `HubcacheError` as `read_into` does.
        """


def send_file(socket: int, fd: int, start: int, count: int, file_failed: Callable[[OSError], None]) -> int:
    """Send bytes of a file to a socket, at most `count` from `start` on; return their number.

    The kernel does not tell whether an error is the socket's or the file's. So a byte is read: when that fails too,
    `file_failed` gets the error; it may raise, else 0 is returned. Raises as `FilePart.send_to` does.
    """
    try:
        return os.sendfile(socket, fd, start, count)
    except (BlockingIOError, ConnectionError):
        raise
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            raise SendfileUnsupported from error
        try:
            os.pread(fd, 1, start)
        except OSError as read_error:
            file_failed(read_error)
            return 0
        raise

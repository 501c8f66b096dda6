"""Files sent to sockets by the kernel: errors of the file, of the socket and of sendfile itself are distinguished."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubcache.transfer.file_part import SendfileUnsupported, send_file

DATA = bytes(range(256)) * 64


class FileError(Exception):
    """The error that the file's owner raises."""


def file_failed(error: OSError) -> None:
    raise FileError(error.errno)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "blob").write_bytes(DATA)
    descriptor = os.open(tmp_path / "blob", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def test_range_of_the_file_is_sent(fd: int, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    assert send_file(ours.fileno(), fd, 100, 1000, file_failed) == 1000
    assert theirs.recv(2000) == DATA[100:1100]


def test_nothing_is_sent_beyond_the_end_of_the_file(fd: int, pair: tuple[socket.socket, socket.socket]) -> None:
    assert send_file(pair[0].fileno(), fd, len(DATA), 1000, file_failed) == 0


def test_full_socket_accepts_nothing(fd: int, pair: tuple[socket.socket, socket.socket]) -> None:
    ours = pair[0]
    with pytest.raises(BlockingIOError):
        list(iter(lambda: send_file(ours.fileno(), fd, 0, len(DATA), file_failed), 0))


def test_client_that_has_disconnected_is_an_error_of_the_socket(
    fd: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    pair[1].close()
    with pytest.raises(ConnectionError):
        send_file(pair[0].fileno(), fd, 0, 1000, file_failed)


def failing(number: int) -> object:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def test_file_that_cannot_be_read_is_an_error_of_the_file(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sendfile", failing(errno.EIO))
    monkeypatch.setattr(os, "pread", failing(errno.EIO))
    with pytest.raises(FileError):
        send_file(0, fd, 0, 1000, file_failed)


def test_other_error_is_the_sockets_while_the_file_can_be_read(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sendfile", failing(errno.ETIMEDOUT))
    with pytest.raises(TimeoutError):
        send_file(0, fd, 0, 1000, file_failed)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
def test_file_system_without_sendfile_is_reported(fd: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sendfile", failing(number))
    with pytest.raises(SendfileUnsupported):
        send_file(0, fd, 0, 1000, file_failed)

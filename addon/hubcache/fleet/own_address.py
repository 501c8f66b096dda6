"""Finds the address at which other nodes of a fleet reach this one."""

import contextlib
import socket

_ANYWHERE = ("192.0.2.1", 9)
"""An address that is reserved for documentation (RFC 5737): the way to it is the default route."""

_ALL = ("", "0.0.0.0", "::")  # noqa: S104 - compared, not listened on


def own_host(listen_host: str, bucket: tuple[str, int]) -> str:
    """Return the host of the listener, or where it listens on all addresses that of the interface towards the bucket.

    It blocks while the name of the bucket's host is resolved. If that fails, the interface of the default route is
    taken. No packet is sent to either address.
    """
    if listen_host not in _ALL:
        return listen_host
    for host, port in (bucket, _ANYWHERE):
        with contextlib.suppress(OSError):
            return _source_address(host, port)
    return socket.gethostname()


def _source_address(host: str, port: int) -> str:
    """Return the address that this machine's packets to a host have."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        found: str = probe.getsockname()[0]
    return found

"""Decides which hosts clients may reach through the proxy: none that only this machine may reach.

A proxy that connects to every named destination opens the machine's own listeners to all clients: databases that trust
loopback, the cloud's metadata service with its credentials, the status listener. A name alone says nothing about that,
and may resolve to another address the next time (DNS rebinding). So a name is resolved once, and the proxy connects to
the address that was checked.
"""

import asyncio
import re
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address

from ..oci.address import is_local_address, is_local_host, literal_address

type Address = tuple[str, int]
"""Host, as a name or an IP address, and port."""

_LOOKUP_THREADS = 8
"""Names looked up at the same time, in threads of their own: a name whose DNS servers do not answer blocks a thread for
half a minute."""
_MAX_SHOWN = 100
"""Characters of a destination in answers and log lines."""


class Refused(Exception):
    """A client may not reach a destination; the message is for the client."""


def is_own_listener(address: Address, ports: Iterable[int]) -> bool:
    """Whether an address, whose name is resolved, is one of this machine with one of these ports."""
    host, port = address
    if port not in ports:
        return False
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_is_own(str(entry[4][0])) for entry in found)


class Destinations:
    """The permitted destinations. `patterns` are those of the option: HOST or HOST:PORT in lower case, with * for any
    characters. `ports` are this program's own listeners."""

    def __init__(self, patterns: Sequence[str], ports: Iterable[int]) -> None:
        self._patterns = tuple(map(_compiled, patterns))
        self._literals = tuple(_compiled(pattern) for pattern in patterns if "*" not in pattern)
        """Patterns without *, which permit inner addresses as well."""
        self._ports = frozenset(ports)
        self._threads = ThreadPoolExecutor(_LOOKUP_THREADS, thread_name_prefix="tunnels")

    async def resolve(self, address: Address) -> Address:
        """Return the IP address and port to connect to for `address`.

        The first permitted IP address is taken; where it does not answer, no other is tried. Raises `Refused`, or
        `OSError` where the name does not resolve.
        """
        host, port = _normalized(address[0]), address[1]
        if not _matches(self._patterns, host, port):
            raise Refused(f"{_shown(address)} is not in hubcache_tunnel")
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        except UnicodeError as error:  # not a name that DNS could have
            raise OSError(f"{_shown(address)} is not a host name") from error
        resolved = [str(entry[4][0]) for entry in found]
        if _matches(self._literals, host, port):
            return resolved[0], port
        permitted = [each for each in resolved if self._permits(each, port)]
        if not permitted:
            raise Refused(_local(address))
        return permitted[0], port

    def check_unresolved(self, address: Address) -> None:
        """Raise `Refused` for a destination that a client may not reach through an outbound proxy.

        The outbound proxy resolves names: only hosts that are IP addresses, and `localhost`, are checked.
        """
        host, port = _normalized(address[0]), address[1]
        if not _matches(self._patterns, host, port):
            raise Refused(f"{_shown(address)} is not in hubcache_tunnel")
        if _matches(self._literals, host, port):
            return
        number = literal_address(host)
        if is_local_host(host) or (number is not None and not self._permits(str(number), port)):
            raise Refused(_local(address))

    def _permits(self, resolved: str, port: int) -> bool:
        if is_local_address(resolved):
            return False
        return port not in self._ports or not _is_own(resolved)


def _compiled(pattern: str) -> re.Pattern[str]:
    """Return the expression for "host port"; a pattern without a port matches any port."""
    found = re.fullmatch(r"(\[.*\]|[^:]*)(?::(.*))?", pattern)
    assert found is not None  # the option was checked
    host, port = _normalized(found[1]), found[2] or "*"
    return re.compile(" ".join(".*".join(map(re.escape, part.split("*"))) for part in (host, port)))


def _normalized(host: str) -> str:
    """Return the one spelling of a host that is compared."""
    host = host.lower().strip("[]").rstrip(".")
    try:
        return ip_address(host).compressed
    except ValueError:
        return host


def _matches(patterns: Iterable[re.Pattern[str]], host: str, port: int) -> bool:
    return any(pattern.fullmatch(f"{host} {port}") for pattern in patterns)


def _is_own(resolved: str) -> bool:
    """Whether an IP address belongs to this machine: a socket can be bound only to those."""
    family = socket.AF_INET6 if ":" in resolved else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((resolved, 0))
        except OSError:
            return False
    return True


def _local(address: Address) -> str:
    return f"{_shown(address)} is an address of this machine or its link; hubcache_tunnel does not name it"


def _shown(address: Address) -> str:
    """Return an address as it appears in answers and in the log: shortened, and without characters that end a line."""
    text = f"{address[0]}:{address[1]}"
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MAX_SHOWN])

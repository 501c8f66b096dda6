"""Where clients may have the proxy connect to: other hosts, and never what only this machine is to reach.

A proxy that connects to whatever it is told opens the machine's own listeners to all its clients: databases that trust
loopback, the cloud's metadata with its credentials, the status listener. A name tells nothing of that, and may lead
elsewhere the next time it is asked for (DNS rebinding): so it is resolved once, and what is connected to is the address
that was looked at.
"""

import asyncio
import re
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address

from ..oci.address import is_local_address

type Address = tuple[str, int]
"""Host, by name or number, and port."""

_LOOKUPS = 8
"""Names that are looked up at once, in threads that nothing else uses: who names what no server answers for has each of
them wait for half a minute."""


class Refused(Exception):
    """A client may not reach this; the message is for the client."""


class Destinations:
    """`patterns` are those of the option: HOST or HOST:PORT in lower case, with * for any characters. `ports` are this
    program's own."""

    def __init__(self, patterns: Sequence[str], ports: Iterable[int]) -> None:
        self._patterns = tuple(map(_compiled, patterns))
        self._named = tuple(_compiled(pattern) for pattern in patterns if "*" not in pattern)
        self._ports = frozenset(ports)
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="tunnels")

    async def find(self, address: Address) -> Address:
        """What to connect to, by number, for that address; raises `Refused`, or `OSError` where the name is nobody's.

        The first address that is permitted is taken; where it does not answer, no other is tried.
        """
        host, port = _plain(address[0]), address[1]
        if not _matches(self._patterns, host, port):
            raise Refused(f"{_shown(address)} is not in hubcache_tunnel")
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        except UnicodeError as error:  # no name that DNS could have
            raise OSError(f"{_shown(address)} is no name of a host") from error
        numbers = [str(entry[4][0]) for entry in found]
        if _matches(self._named, host, port):
            return numbers[0], port
        permitted = [number for number in numbers if self._permits(number, port)]
        if not permitted:
            raise Refused(
                f"{_shown(address)} is an address of this machine or its link; hubcache_tunnel does not name it"
            )
        return permitted[0], port

    def _permits(self, number: str, port: int) -> bool:
        if is_local_address(number):
            return False
        return port not in self._ports or not _is_own(number)


def _compiled(pattern: str) -> re.Pattern[str]:
    """Of HOST alone, any port matches."""
    found = re.fullmatch(r"(\[.*\]|[^:]*)(?::(.*))?", pattern)
    assert found is not None  # the option was checked
    host, port = _plain(found[1]), found[2] or "*"
    return re.compile(" ".join(".*".join(map(re.escape, part.split("*"))) for part in (host, port)))


def _plain(host: str) -> str:
    """One spelling of a host."""
    host = host.lower().strip("[]").rstrip(".")
    try:
        return ip_address(host).compressed
    except ValueError:
        return host


def _matches(patterns: Iterable[re.Pattern[str]], host: str, port: int) -> bool:
    return any(pattern.fullmatch(f"{host} {port}") for pattern in patterns)


def _is_own(number: str) -> bool:
    """Whether an address is one of this machine: only those can be bound to."""
    family = socket.AF_INET6 if ":" in number else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((number, 0))
        except OSError:
            return False
    return True


def _shown(address: Address) -> str:
    """In answers and in the log: a part, if it is long, and nothing that ends a line."""
    text = f"{address[0]}:{address[1]}"
    return "".join(letter if letter.isprintable() else "?" for letter in text[:100])

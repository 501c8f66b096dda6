"""A hostile client: `python -m soaklib.attacker NAME PROXY_PORT MIRROR_PORT SECONDS`.

Every attack is bounded in time, and only connects to ports of this machine. It prints `ready` once the attack is under
way: with its first answer, or with all its connections open. Attacks that hold connections then print `N connections`
every second, the number that is still open. An attack that fails before that ends without printing `ready`.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

HALF_OPEN, IDLE, LEAVERS, SLOW = 2000, 1000, 40, 200
"""How many connections an attack opens."""

CLIENTS = 8
"""How many clients send requests at the same time, in attacks that repeat requests."""

WIDE, NESTED, LARGE = "evil/wide", "evil/nested", "evil/large"
"""Repositories with hostile content; the process that starts the attack publishes them."""

_PAUSE_SECONDS = 0.005
_READY_SECONDS = 30.0
_TCP_ESTABLISHED = 1
"""State in the first byte of Linux's `struct tcp_info`."""


@dataclass(frozen=True)
class Target:
    """The ports of the proxy door and of the mirror door, and the end of the attack in monotonic seconds."""

    proxy: int
    mirror: int
    until: float

    @property
    def is_over(self) -> bool:
        """Whether the attack is to end."""
        return time.monotonic() >= self.until

    async def rest(self) -> None:
        """Wait until the end of the attack."""
        await asyncio.sleep(max(0.0, self.until - time.monotonic()))

    async def send(self, data: bytes, *, proxy: bool = False) -> bytes:
        """Send data on a new connection; returns the first bytes of the answer, or none when the connection ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy if proxy else self.mirror)
        try:
            writer.write(data)
            async with asyncio.timeout(20):
                return await reader.read(1 << 20)
        finally:
            writer.close()


def request(path: str, *lines: str) -> bytes:
    """The head of a GET request that asks the server to close the connection."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: a", "Connection: close", *lines, "", ""]).encode("latin-1")


def _ready() -> None:
    print("ready", flush=True)


def _report_open(transports: Iterable[asyncio.BaseTransport]) -> None:
    print(f"{sum(map(_is_open, transports))} connections", flush=True)


def _is_open(transport: asyncio.BaseTransport) -> bool:
    """Whether neither side has closed or reset the connection, by its TCP state.

    The transport knows it only after it has read everything that the server sent."""
    if transport.is_closing():
        return False
    options = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return bool(options[0] == _TCP_ESTABLISHED)


async def _repeat(target: Target, head: Callable[[int], bytes], *, proxy: bool = False) -> None:
    """Send requests, with a few clients at the same time; ready after the first answer to any of them."""
    numbers = itertools.count()
    answered = asyncio.Event()

    async def client() -> None:
        while not target.is_over:
            with contextlib.suppress(OSError, TimeoutError):
                if await target.send(head(next(numbers)), proxy=proxy):
                    answered.set()
            await asyncio.sleep(_PAUSE_SECONDS)

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
        async with asyncio.timeout(_READY_SECONDS):
            await answered.wait()
        _ready()


async def folded(target: Target) -> None:
    """Headers with obsolete line folding, for content that is not stored."""
    await _repeat(target, lambda n: request(f"/v2/library/none{n}/manifests/1", "X-Folded: a\r\n b", "Accept: a\r\n b"))


async def nested(target: Target) -> None:
    """Indexes of indexes that list the same child many times."""
    await _repeat(target, lambda n: request(f"/v2/{NESTED}/manifests/1"))


async def large(target: Target) -> None:
    """Manifests of 4 MiB with 40,000 layers."""
    await _repeat(target, lambda n: request(f"/v2/{LARGE}/manifests/{n % 5}"))


async def agents(target: Target) -> None:
    """A new user agent of 14 KB in each request."""
    await _repeat(
        target, lambda n: request(f"/v2/library/none/manifests/{n}", f"User-Agent: {n} {'x' * 14_000} os/{n} arch/{n}")
    )


async def deep(target: Target) -> None:
    """Tokens whose claims are nested 10,000 deep."""
    claims = base64.urlsafe_b64encode(b"[" * 10_000 + b"]" * 10_000).decode()
    await _repeat(target, lambda n: request(f"/v2/library/none{n}/manifests/1", f"Authorization: Bearer a.{claims}.b"))


async def relay(target: Target) -> None:
    """CONNECT to services of the cache's own machine."""
    hosts = ["127.0.0.1:22", "localhost:9180", "[::ffff:127.0.0.1]:80", "169.254.169.254:80"]
    await _repeat(
        target, lambda n: f"CONNECT {hosts[n % 4]} HTTP/1.1\r\nHost: {hosts[n % 4]}\r\n\r\n".encode(), proxy=True
    )


async def leavers(target: Target) -> None:
    """Clients that request large blobs that are not stored, and leave."""
    digests = json.loads(sys.stdin.readline())

    async def leave(digest: str) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", target.mirror)
        writer.write(request(f"/v2/{WIDE}/blobs/{digest}"))
        await asyncio.sleep(0.2)
        writer.close()

    await asyncio.gather(*map(leave, digests[:LEAVERS]))
    _ready()
    await target.rest()


async def _hold(target: Target, count: int, begin: bytes, drip: bytes, *, proxy: bool) -> None:
    """Open `count` connections and send `begin` on each, then `drip` every second; ready once all are open."""
    loop, port = asyncio.get_running_loop(), target.proxy if proxy else target.mirror
    transports: list[asyncio.Transport] = []
    for _ in range(count):
        transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
        transport.write(begin)
        transports.append(transport)
    _ready()
    while not target.is_over:
        _report_open(transports)
        for transport in filter(_is_open, transports):
            transport.write(drip)
        await asyncio.sleep(1)
    for transport in transports:
        transport.abort()


async def half_open(target: Target) -> None:
    """Request heads that never end, at the proxy door."""
    await _hold(target, HALF_OPEN, b"CONNECT registry-1.docker.io:443 HTTP/1.1\r\nX: ", b"x", proxy=True)


async def half_open_mirror(target: Target) -> None:
    """Request heads that never end, at the mirror door."""
    await _hold(target, HALF_OPEN, b"GET /v2/ HTTP/1.1\r\nX: ", b"x", proxy=False)


async def idle(target: Target) -> None:
    """Idle connections, kept open after a request."""
    await _hold(target, IDLE, b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n", b"", proxy=False)


async def slow(target: Target) -> None:
    """Clients that read a large blob byte by byte, one byte every few seconds."""
    digests = json.loads(sys.stdin.readline())
    streams = []
    for number in range(SLOW):
        reader, writer = await asyncio.open_connection("127.0.0.1", target.mirror, limit=1)
        writer.write(request(f"/v2/{WIDE}/blobs/{digests[number % 3]}"))
        streams.append((reader, writer))
    _ready()
    while not target.is_over:
        _report_open(writer.transport for _, writer in streams)
        for reader, _ in streams:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(0.01):
                    await reader.read(1)
        await asyncio.sleep(1)
    for _, writer in streams:
        writer.transport.abort()


ATTACKS: dict[str, Callable[[Target], Awaitable[None]]] = {
    each.__name__: each
    for each in (folded, nested, large, agents, deep, relay, leavers, half_open, half_open_mirror, idle, slow)
}


def main() -> None:
    """Run one attack until its time is over."""
    name, proxy, mirror, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    asyncio.run(_run(ATTACKS[name], proxy, mirror, seconds))


async def _run(attack: Callable[[Target], Awaitable[None]], proxy: int, mirror: int, seconds: float) -> None:
    await attack(Target(proxy, mirror, time.monotonic() + seconds))


if __name__ == "__main__":
    main()

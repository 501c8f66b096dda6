"""A hostile client in a process of its own: `python -m soaklib.attacker NAME PROXY_PORT MIRROR_PORT SECONDS`.

Every attack is bounded in time and in requests, and goes to a port of this machine. It prints `ready` when its pressure
is there.
"""

import asyncio
import base64
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

HALF_OPEN, IDLE, AGENTS, LEAVERS, SLOW = 2000, 1000, 8000, 40, 200
"""How many connections, requests or clients an attack has."""

CLIENTS = 8
"""How many repeat their requests at the same time."""

WIDE, NESTED, LARGE = "evil/wide", "evil/nested", "evil/large"
"""Repositories with hostile content, which whoever runs this has put into the registry."""

_PAUSE_SECONDS = 0.005


@dataclass(frozen=True)
class Target:
    """The two doors, and when to stop (monotonic)."""

    proxy: int
    mirror: int
    until: float

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.until

    async def rest(self) -> None:
        """Wait until the time is up."""
        await asyncio.sleep(max(0.0, self.until - time.monotonic()))

    async def ask(self, head: bytes, *, proxy: bool = False, most: int = 1 << 20) -> bytes:
        """Send bytes on a new connection; what comes back, until the connection ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy if proxy else self.mirror)
        try:
            writer.write(head)
            async with asyncio.timeout(20):
                return await reader.read(most)
        finally:
            writer.close()


def request(path: str, *lines: str) -> bytes:
    """The head of a GET, closed after its answer."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: a", "Connection: close", *lines, "", ""]).encode("latin-1")


async def _repeat(target: Target, head: Callable[[int], bytes], *, proxy: bool = False, most: int = 4000) -> None:
    """Requests of a few clients, each sending one after the other."""
    numbers = iter(range(most))

    async def client() -> None:
        for number in numbers:
            if target.is_over:
                return
            with contextlib.suppress(OSError, TimeoutError):
                await target.ask(head(number), proxy=proxy)
            await asyncio.sleep(_PAUSE_SECONDS)

    print("ready", flush=True)
    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def folded(target: Target) -> None:
    """Headers with obsolete line folding, for content that is not stored."""
    await _repeat(target, lambda n: request(f"/v2/library/none{n}/manifests/1", "X-Folded: a\r\n b", "Accept: a\r\n b"))


async def nested(target: Target) -> None:
    """Indexes of indexes that name the same child again and again."""
    await _repeat(target, lambda n: request(f"/v2/{NESTED}/manifests/1"))


async def large(target: Target) -> None:
    """Manifests of 4 MiB with 40,000 layers."""
    await _repeat(target, lambda n: request(f"/v2/{LARGE}/manifests/{n % 5}"))


async def agents(target: Target) -> None:
    """Ever new user agents of 14 KB."""
    await _repeat(
        target,
        lambda n: request(f"/v2/library/none/manifests/{n}", f"User-Agent: {n} {'x' * 14_000} os/{n} arch/{n}"),
        most=AGENTS,
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
    """Clients that ask for large blobs that are not stored, and leave."""
    digests = json.loads(sys.stdin.readline())

    async def leave(digest: str) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", target.mirror)
        writer.write(request(f"/v2/{WIDE}/blobs/{digest}"))
        await asyncio.sleep(0.2)
        writer.close()

    await asyncio.gather(*map(leave, digests[:LEAVERS]))
    print("ready", flush=True)
    await target.rest()


async def _hold(target: Target, count: int, begin: bytes, drip: bytes, *, proxy: bool) -> None:
    """Keep connections open, each with a byte now and then."""
    writers = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", target.proxy if proxy else target.mirror)
            writer.write(begin)
            writers.append(writer)
    print("ready", flush=True)
    while not target.is_over:
        for writer in writers:
            with contextlib.suppress(OSError):
                writer.write(drip)
        await asyncio.sleep(1)
    for writer in writers:
        writer.close()


async def half_open(target: Target) -> None:
    """Heads that never end, at the proxy door."""
    await _hold(target, HALF_OPEN, b"CONNECT registry-1.docker.io:443 HTTP/1.1\r\nX: ", b"x", proxy=True)


async def half_open_mirror(target: Target) -> None:
    """Heads that never end, at the mirror door."""
    await _hold(target, HALF_OPEN, b"GET /v2/ HTTP/1.1\r\nX: ", b"x", proxy=False)


async def idle(target: Target) -> None:
    """Kept connections on which nothing is asked any more."""
    await _hold(target, IDLE, b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n", b"", proxy=False)


async def slow(target: Target) -> None:
    """Readers that take one byte in a while."""
    digests = json.loads(sys.stdin.readline())
    streams = []
    for number in range(SLOW):
        reader, writer = await asyncio.open_connection("127.0.0.1", target.mirror, limit=1)
        writer.write(request(f"/v2/{WIDE}/blobs/{digests[number % 3]}"))
        streams.append((reader, writer))
    print("ready", flush=True)
    while not target.is_over:
        for reader, _ in streams:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(0.01):
                    await reader.read(1)
        await asyncio.sleep(1)
    for _, writer in streams:
        writer.close()


ATTACKS: dict[str, Callable[[Target], Awaitable[None]]] = {
    each.__name__: each
    for each in (folded, nested, large, agents, deep, relay, leavers, half_open, half_open_mirror, idle, slow)
}


def main() -> None:
    """Run one attack."""
    name, proxy, mirror, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    asyncio.run(_run(ATTACKS[name], proxy, mirror, seconds))


async def _run(attack: Callable[[Target], Awaitable[None]], proxy: int, mirror: int, seconds: float) -> None:
    await attack(Target(proxy, mirror, time.monotonic() + seconds))


if __name__ == "__main__":
    main()

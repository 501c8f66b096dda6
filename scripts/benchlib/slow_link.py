"""A TCP relay with a limited rate in bytes per second, shared by all its connections, from the CDN to the cache.

It stands for the internet link of an office. A web server can only limit each connection, and so would not slow down a
cache that fetches a blob once for each client. Run as `slow_link.py RATE LISTEN_PORT:TARGET_PORT…` (loopback ports).
"""

import asyncio
import contextlib
import socket
import sys

_READ = 256 << 10
_BURST = 0.01


class _RateLimiter:
    """Delays each piece of data until the pieces before it have been sent at the given rate."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def take(self, size: int) -> None:
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - _BURST) + size / self._rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


async def _copy(source: socket.socket, target: socket.socket, limiter: _RateLimiter | None) -> None:
    loop, buffer = asyncio.get_running_loop(), memoryview(bytearray(_READ))
    with contextlib.suppress(OSError):
        while count := await loop.sock_recv_into(source, buffer):
            if limiter is not None:
                await limiter.take(count)
            await loop.sock_sendall(target, buffer[:count])
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


async def _relay(client: socket.socket, target_port: int, limiter: _RateLimiter) -> None:
    with client, socket.socket() as server, contextlib.suppress(OSError):
        for connection in (client, server):
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(server, ("127.0.0.1", target_port))
        await asyncio.gather(_copy(client, server, None), _copy(server, client, limiter))


async def _serve(listen_port: int, target_port: int, limiter: _RateLimiter) -> None:
    relays = set()
    with socket.create_server(("127.0.0.1", listen_port), backlog=128) as listener:
        listener.setblocking(False)
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            relay = asyncio.create_task(_relay(client, target_port, limiter))
            relays.add(relay)
            relay.add_done_callback(relays.discard)


async def _run(rate: float, pairs: list[str]) -> None:
    limiter = _RateLimiter(rate)
    ports = [tuple(map(int, pair.split(":"))) for pair in pairs]
    await asyncio.gather(*(_serve(listen, target, limiter) for listen, target in ports))


if __name__ == "__main__":
    asyncio.run(_run(float(sys.argv[1]), sys.argv[2:]))

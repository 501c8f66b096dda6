"""A TCP relay that lets through RATE bytes per second in all, whatever the number of connections: the shared line of an
office to the registry's CDN. A web server can only limit each connection, which forgives a cache that fetches a blob
for every client. Run as `uplink.py RATE LISTEN:TARGET…` (loopback ports)."""

import asyncio
import contextlib
import socket
import sys

_READ = 256 << 10
_BURST = 0.01


class _Line:
    """The line is booked ahead: each piece takes its turn after all those before it."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def take(self, size: int) -> None:
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - _BURST) + size / self._rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


async def _copy(source: socket.socket, target: socket.socket, line: _Line | None) -> None:
    loop, buffer = asyncio.get_running_loop(), memoryview(bytearray(_READ))
    with contextlib.suppress(OSError):
        while count := await loop.sock_recv_into(source, buffer):
            if line is not None:
                await line.take(count)
            await loop.sock_sendall(target, buffer[:count])
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


async def _relay(near: socket.socket, target: int, line: _Line) -> None:
    with near, socket.socket() as far, contextlib.suppress(OSError):
        for one in (near, far):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(far, ("127.0.0.1", target))
        await asyncio.gather(_copy(near, far, None), _copy(far, near, line))


async def _serve(listen: int, target: int, line: _Line) -> None:
    relays = set()
    with socket.create_server(("127.0.0.1", listen), backlog=128) as door:
        door.setblocking(False)
        while True:
            near, _ = await asyncio.get_running_loop().sock_accept(door)
            relay = asyncio.create_task(_relay(near, target, line))
            relays.add(relay)
            relay.add_done_callback(relays.discard)


async def _run(rate: float, pairs: list[str]) -> None:
    line = _Line(rate)
    ports = [tuple(map(int, pair.split(":"))) for pair in pairs]
    await asyncio.gather(*(_serve(listen, target, line) for listen, target in ports))


if __name__ == "__main__":
    asyncio.run(_run(float(sys.argv[1]), sys.argv[2:]))

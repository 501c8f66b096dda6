"""A TCP relay that lets through RATE bytes per second in all, whatever the number of connections: the shared line of an
office to the registry's CDN. A web server can only limit each connection, which forgives a cache that fetches a blob
for every client. Run as `uplink.py RATE LISTEN:TARGET…` (loopback ports)."""

import asyncio
import contextlib
import sys

_READ = 64 << 10
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


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: _Line | None) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_READ):
            if line is not None:
                await line.take(len(piece))
            writer.write(piece)
            await writer.drain()
    writer.close()


async def _serve(listen: int, target: int, line: _Line) -> asyncio.Server:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target, limit=_READ)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, far_writer, None), _copy(far_reader, writer, line))

    return await asyncio.start_server(relay, "127.0.0.1", listen)


async def _run(rate: float, pairs: list[str]) -> None:
    line = _Line(rate)
    ports = [tuple(map(int, pair.split(":"))) for pair in pairs]
    servers = [await _serve(listen, target, line) for listen, target in ports]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(_run(float(sys.argv[1]), sys.argv[2:]))

"""A gateway in front of an object store: it forwards requests, records them, and breaks answers as a test wants."""

import asyncio
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from support.ports import free_port
from support.standin.faults import Fault, Faults
from support.standin.reply import Reply, replaced, send
from support.standin.requestlog import Record

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}
_CONFLICT = (409, 412)
_PIECE = 1 << 16
_PERIODIC = ("node", "popularity", "sweep", "probe", "lease/sweep")


@dataclass
class BucketFault(Fault):
    """A fault of the bucket. `kind` is the first part of an object's key (blob, lease, node, ...); `rate` also limits
    the body of a request, in bytes per second. `status` replaces the answer of a request that is not forwarded."""

    denies_conflicts: bool = False
    """Report success for a write whose condition (`If-Match`, `If-None-Match`) does not hold."""
    loses_answer: bool = False
    """Forward the request, and close the connection in place of the answer."""


def full() -> BucketFault:
    """Return the fault of a bucket without free space."""
    return BucketFault(method="PUT", status=507, body="<Error><Code>QuotaExceeded</Code></Error>")


@dataclass(frozen=True)
class _Body:
    """The body of a forwarded answer."""

    size: int
    answer: aiohttp.ClientResponse

    async def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        async for chunk in self.answer.content.iter_chunked(_PIECE):
            yield chunk


class BucketGateway:
    """A listener at a port of its own, a context manager. All public attributes may be used from any thread.

    Signatures cover the Host field, which is therefore forwarded as it was received.
    """

    def __init__(self, backend: str) -> None:
        self.faults = Faults()
        self.log: list[Record] = []
        self._backend = backend
        self._port = free_port()
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._going = threading.Event()
        self._going.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    # -- life

    def __enter__(self) -> Self:
        threading.Thread(target=self._loop.run_forever, name="bucket gateway", daemon=True).start()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resume()
        self.faults.clear()
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        while self._loop.is_running():
            time.sleep(0.001)
        self._loop.close()

    def start(self) -> None:
        """Accept connections, at the same port as before."""
        if self._runner is None:
            self._run(self._start())

    def stop(self) -> None:
        """Close all connections, and refuse new ones."""
        if self._runner is not None:
            self._run(self._stop())

    def pause(self) -> None:
        """Let all requests wait, also those that have not been answered."""
        self._going.clear()

    def resume(self) -> None:
        """End a pause; the requests that wait are forwarded."""
        self._going.set()

    def repair(self) -> None:
        """End all faults."""
        self.faults.clear()
        self.resume()
        self.start()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(auto_decompress=False, timeout=timeout)
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._runner = runner

    async def _stop(self) -> None:
        assert self._runner is not None
        assert self._session is not None
        server = self._runner.server
        await self._runner.cleanup()
        for _ in range(10):  # connections that were accepted at the last moment are made some iterations later
            await asyncio.sleep(0)
        if server is not None:
            await server.shutdown(0.1)
        await self._session.close()
        self._runner = None

    # -- requests

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        key = _key(request.raw_path, await request.read() if request.method == "POST" else b"")
        record = Record("bucket", request.method, request.raw_path, key, key.partition("/")[0], dict(request.headers))
        self.log.append(record)
        while not self._going.is_set():  # noqa: ASYNC110 - the event is set by another thread, the test's
            await asyncio.sleep(0.005)
        fault = self.faults.take(record.kind, request.method, unquote(request.raw_path))
        try:
            if fault is not None and (reply := replaced(fault, "")) is not None:
                return await send(request, reply, record, fault, None)
            if fault is not None and (fault.reset or fault.blackhole):
                return await send(request, Reply(0), record, fault, None)
            return await self._forward(request, record, fault)
        finally:
            record.finished = time.monotonic()

    async def _forward(self, request: web.Request, record: Record, fault: Fault | None) -> web.StreamResponse:
        assert self._session is not None
        headers = _end_to_end(request.headers)
        body: AsyncIterator[bytes] | bytes | None = None
        if request.method == "POST":
            body = await request.read()
        elif request.body_exists:
            body = _paced(request, fault.rate if fault else None)
        async with self._session.request(
            request.method,
            URL(self._backend + request.raw_path, encoded=True),
            headers=headers,
            data=body,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            allow_redirects=False,
        ) as answer:
            if isinstance(fault, BucketFault) and fault.loses_answer:
                record.status = answer.status
                if request.transport is not None:
                    request.transport.close()
                return web.Response()
            if isinstance(fault, BucketFault) and fault.denies_conflicts and answer.status in _CONFLICT:
                return await send(request, Reply(200, {"ETag": f'"{secrets.token_hex(16)}"'}), record, fault, None)
            received = _end_to_end(answer.headers)
            size = received.pop("Content-Length", None)
            content = await answer.read() if size is None else _Body(int(size), answer)
            return await send(request, Reply(answer.status, received, content), record, fault, None)

    # -- what was requested

    def requests(self, **wanted: str | int | None) -> list[Record]:
        """Return the records with these fields: `kind` is the first part of the key, and `repo` is the whole key."""
        return [record for record in list(self.log) if record.matches(**wanted)]

    def recent(self) -> list[str]:
        """Return the last requests with their statuses and times, for the report of a failure."""
        return [
            f"{record.started:.2f}-{record.finished or 0:.2f} {record.method} {record.repo} {record.status}"
            for record in self.log[-30:]
        ]

    def requests_of_pulls(self) -> list[str]:
        """Return method and key of the requests other than those that a node sends at regular times."""
        return [f"{record.method} {record.repo}" for record in list(self.log) if not record.repo.startswith(_PERIODIC)]


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP)


def _key(raw_path: str, body: bytes) -> str:
    """Return the key of an object without the prefix of its fleet; of a list, the prefix of the listed keys.

    Of a request that deletes several objects, it is the first key in its body.
    """
    parts = urlsplit(raw_path)
    fields = parse_qs(parts.query, keep_blank_values=True)
    if "delete" in fields:
        found = re.search(rb"<Key>([^<]*)</Key>", body)
        return found[1].decode().partition("/")[2] if found else ""
    if "list-type" in fields:
        return fields.get("prefix", [""])[0].partition("/")[2]
    return "/".join(unquote(parts.path).split("/")[3:])


async def _paced(request: web.Request, rate: int | None) -> AsyncIterator[bytes]:
    begun, sent = time.monotonic(), 0
    async for chunk in request.content.iter_chunked(_PIECE if rate is None else max(1024, rate // 20)):
        yield chunk
        sent += len(chunk)
        if rate is not None:
            await asyncio.sleep(begun + sent / rate - time.monotonic())

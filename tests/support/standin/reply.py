"""Responses of the stand-in Hub, and how they are sent: paced, logged, and modified by a fault."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from multidict import CIMultiDict

from .content import Body, BytesBody
from .faults import Fault
from .requestlog import Record


@dataclass
class Reply:
    """A response before it is sent; in response to a HEAD, only the size of `body` is sent."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Body = b""


def json_reply(status: int, document: object, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(document).encode() + b"\n")


def error(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None, detail: object = None
) -> Reply:
    """Return an error in the form of the distribution spec."""
    return json_reply(status, {"errors": [{"code": code, "message": message, "detail": detail}]}, headers)


def replaced(fault: Fault, url: str) -> Reply | None:
    """Return the response that a fault puts in place of the real one, None if it does not replace it."""
    if fault.redirect is not None:
        return Reply(307, {"Location": url if fault.redirect == "loop" else fault.redirect})
    if fault.status is None:
        return None
    body, content_type = fault.answer()
    if isinstance(body, bytes):
        return Reply(fault.status, {"Content-Type": content_type}, body)
    return json_reply(fault.status, body, {"Content-Type": content_type})


class _CutError(Exception):
    """Raised where a fault ends the body, whatever length was declared."""


async def _until(done: Callable[[], bool]) -> None:
    while not done():  # noqa: ASYNC110 - the event is set by another thread, the test's
        await asyncio.sleep(0.005)


async def _modified(chunks: AsyncIterator[bytes], fault: Fault) -> AsyncIterator[bytes]:
    at = 0
    if fault.close_after == 0:
        raise _CutError
    async for chunk in chunks:
        if fault.corrupt_at is not None and at <= fault.corrupt_at < at + len(chunk):
            offset = fault.corrupt_at - at
            chunk = chunk[:offset] + bytes([chunk[offset] ^ 0xFF]) + chunk[offset + 1 :]
        while chunk:
            if at == fault.pause_after:
                await _until(fault.release.is_set)
            stops = [stop - at for stop in (fault.pause_after, fault.close_after) if stop is not None and stop > at]
            size = min([len(chunk), *stops])
            yield chunk[:size]
            chunk, at = chunk[size:], at + size
            if at == fault.close_after:
                raise _CutError


async def _paced(chunks: AsyncIterator[bytes], rate: int) -> AsyncIterator[bytes]:
    begun, sent, step = time.monotonic(), 0, max(1024, rate // 20)
    async for chunk in chunks:
        for at in range(0, len(chunk), step):
            piece = chunk[at : at + step]
            yield piece
            sent += len(piece)
            await asyncio.sleep(begun + sent / rate - time.monotonic())


async def send(
    request: web.Request, reply: Reply, record: Record, fault: Fault | None, rate: int | None
) -> web.StreamResponse:
    """Send `reply` as `fault` modifies it, at `rate` bytes per second, and complete `record`."""
    fault = fault or Fault()
    await asyncio.sleep(fault.delay)
    if fault.blackhole:
        await _until(fault.release.is_set)
    transport = request.transport
    if fault.reset or fault.blackhole or transport is None:
        if transport is not None:
            transport.close()
        return web.Response()
    body = BytesBody(reply.body) if isinstance(reply.body, bytes) else reply.body
    headers = CIMultiDict(reply.headers)
    headers.update(fault.headers)
    for name in fault.drop:
        headers.popall(name, None)
    bodiless = request.method == "HEAD" or reply.status in (204, 304)
    response = web.StreamResponse(status=reply.status, headers=headers)
    unmeasured = fault.chunked or "content-length" in (name.lower() for name in fault.drop)
    if not unmeasured and reply.status not in (204, 304):
        response.content_length = body.size if fault.length is None else fault.length
    record.status = reply.status
    await response.prepare(request)
    if bodiless:
        await response.write_eof()
        return response
    chunks = _modified(body.chunks(0, body.size), fault)
    rate = fault.rate or rate
    cut = False
    try:
        async for chunk in _paced(chunks, rate) if rate else chunks:
            record.sent += len(chunk)  # before the write: the test may read the log as soon as the client has the bytes
            await response.write(chunk)
    except _CutError:
        cut = True
    surplus = b"\0" * fault.extra
    if cut or fault.length is not None:
        transport.close()
    elif surplus and unmeasured:
        await response.write(surplus)
    elif surplus:
        transport.write(surplus)
        transport.close()
    with contextlib.suppress(ConnectionError):  # a fault has just closed the connection
        await response.write_eof()
    return response

"""The messages between the owner and its workers on a Unix socket: frames of a JSON list and raw bytes.

Both ends are the same program, started from the same files, so frames have no version and are not checked.
"""

import asyncio
import json
import struct
from typing import Any

from ..oci.digest import Digest
from ..oci.registry import Registry
from ..operate.served_request import ServedRequest
from ..serve.messages import Answer, Change, Forward, Listener, Request, Result

_LENGTHS = struct.Struct("!II")


def frame(head: list[Any], payload: bytes = b"") -> bytes:
    """Return a frame."""
    text = json.dumps(head).encode()
    return _LENGTHS.pack(len(text), len(payload)) + text + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[list[Any], bytes]:
    """Read the next frame; raises `asyncio.IncompleteReadError` when the other end has closed the connection."""
    text, payload = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    return json.loads(await reader.readexactly(text)), await reader.readexactly(payload) if payload else b""


def pack_request(request: Request) -> tuple[list[Any], bytes]:
    """Encode a request for `unpack_request`."""
    registry = request.registry
    place = [registry.host, registry.upstream, registry.is_named_by_client, request.listener.value]
    target = [request.method, request.path, request.headers, request.query, request.client]
    more = [request.to_token_service, request.to_cache, request.attempt]
    return [*place, *target, *more, request.body is not None], request.body or b""


def unpack_request(head: list[Any], payload: bytes) -> Request:
    """Decode a request that `pack_request` encoded."""
    host, upstream, is_named, listener, method, path, *more, has_body = head
    decoded: list[Any] = [*more, payload if has_body else None]
    return Request(method, path, Registry(host, upstream, is_named), Listener(listener), *decoded)


def pack_outcome(outcome: Answer | Forward | None) -> tuple[list[Any], bytes]:
    """Encode an outcome for `unpack_outcome`, without the source of an answer, which is read by other frames."""
    if outcome is None:
        return [None], b""
    if isinstance(outcome, Forward):
        return ["forward", outcome.authorization, outcome.change, outcome.kind, outcome.token_wait], b""
    answer = [outcome.status, outcome.headers, outcome.result.value, outcome.length, outcome.size, outcome.kind]
    more = [outcome.is_private, outcome.token_wait, outcome.error, outcome.is_repeated, outcome.content]
    return ["answer", *answer, *more], outcome.body


def unpack_outcome(head: list[Any], payload: bytes) -> Answer | Forward | None:
    """Decode an outcome that `pack_outcome` encoded."""
    match head:
        case ["forward", authorization, change, kind, token_wait]:
            return Forward(authorization, None if change is None else Change(*change), kind, token_wait)
        case ["answer", status, headers, result, *more, content]:
            answer = Answer(status, headers, Result(result), payload, None, *more)
            answer.content = None if content is None else Digest(content)
            return answer
    return None


def pack_served_request(request: ServedRequest) -> list[Any]:
    """Encode the record of a request for `unpack_served_request`."""
    return [*request[:2], request.listener.value, request.kind, request.result.value, *request[5:]]


def unpack_served_request(values: list[Any]) -> ServedRequest:
    """Decode a record that `pack_served_request` encoded."""
    values[2], values[4] = Listener(values[2]), Result(values[4])
    return ServedRequest(*values)

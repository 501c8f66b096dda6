"""What the owner and its workers say to each other, over a Unix socket: frames of a JSON list and raw bytes.

Both ends are this program, started from the same files, so nothing here is versioned or checked.
"""

import asyncio
import json
import struct
from dataclasses import asdict
from typing import Any

from ..oci.registry import Registry
from ..serve.messages import Answer, Change, Forward, Listener, Request, Result

_LENGTHS = struct.Struct("!II")


def frame(head: list[Any], payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    text = json.dumps(head).encode()
    return _LENGTHS.pack(len(text), len(payload)) + text + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[list[Any], bytes]:
    """The next frame; raises `asyncio.IncompleteReadError` when the other end is gone."""
    text, payload = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    return json.loads(await reader.readexactly(text)), await reader.readexactly(payload) if payload else b""


def pack_request(request: Request) -> tuple[dict[str, Any], bytes]:
    """For `unpack_request`."""
    head = {name: getattr(request, name) for name in Request.__slots__}
    head |= {"registry": asdict(request.registry), "listener": request.listener.value, "body": request.body is not None}
    return head, request.body or b""


def unpack_request(head: dict[str, Any], payload: bytes) -> Request:
    """Inverse of `pack_request`."""
    return Request(
        **head
        | {
            "registry": Registry(**head["registry"]),
            "listener": Listener(head["listener"]),
            "body": payload if head["body"] else None,
        }
    )


def pack_outcome(outcome: Answer | Forward | None) -> tuple[list[Any], bytes]:
    """For `unpack_outcome`. Not the source of an answer: that is read by other frames."""
    if outcome is None:
        return [None], b""
    if isinstance(outcome, Forward):
        return ["forward", outcome.authorization, outcome.change, outcome.kind], b""
    answer = [outcome.status, outcome.headers, outcome.result.value, outcome.length, outcome.size, outcome.kind]
    return ["answer", *answer], outcome.body


def unpack_outcome(head: list[Any], payload: bytes) -> Answer | Forward | None:
    """Inverse of `pack_outcome`."""
    match head:
        case ["forward", authorization, moved, kind]:
            return Forward(authorization, None if moved is None else Change(*moved), kind)
        case ["answer", status, headers, result, length, size, kind]:
            return Answer(status, headers, Result(result), payload, None, length, size, kind)
    return None

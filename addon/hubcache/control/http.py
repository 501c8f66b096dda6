"""HTTP at the control socket: reads JSON requests, and answers with JSON, with events, or with an error as JSON."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from ..oci.digest import Digest
from ..oci.errors import HubcacheError, NotStored, RegistryError, StorageError
from ..oci.image_name import ImageName
from .errors import CommandError, InvalidCommand

logger = logging.getLogger("hubcache")

MAX_BODY = 1 << 20
"""Bytes of a JSON request: some 10,000 names of images."""

type Event = Mapping[str, Any]

_LARGE = 100
"""Items of a list from which an answer is encoded in a thread: 10,000 images take some 50 ms."""


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors with their status and `{"error": sentence}`."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        message = f"{request.method} {request.path[:200]}: {error.reason}"
        return error_response(error.status, message, {"Allow": error.headers.get("Allow", "")})
    except HubcacheError as error:
        return error_response(status_of(error), str(error))


def status_of(error: HubcacheError) -> int:
    """Return the status for an error: 503 for one of the store, 507 for content that does not fit."""
    match error:
        case CommandError() | RegistryError():
            return error.status
        case NotStored():
            return 507
        case StorageError():
            return 503
        case _:
            return 500


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return the answer for an error."""
    fields = {name: value for name, value in (headers or {}).items() if value}
    return web.json_response({"error": message}, status=status, headers=fields)


async def read_fields(request: web.Request, *names: str) -> dict[str, Any]:
    """Return the JSON object of a request, which may have these fields; raises `InvalidCommand`."""
    try:
        body = json.loads(await request.read() or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidCommand("the body of the request is not JSON") from error
    if not isinstance(body, dict):
        raise InvalidCommand("the body of the request is not a JSON object")
    unknown = sorted(body.keys() - set(names))
    if unknown:
        raise InvalidCommand(f"{unknown[0][:100]!r} is not a field of this request; expected {', '.join(names)}")
    return body


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """Return a field that has to be text; raises `InvalidCommand`."""
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidCommand(f"the field {name!r} is missing or not text")
    return value


def image_field(fields: Mapping[str, Any], name: str) -> ImageName:
    """Return a field that has to be the name of an image; raises `InvalidCommand`."""
    return parse_image(text_field(fields, name))


def parse_image(text: str) -> ImageName:
    """Parse the name of an image; raises `InvalidCommand`."""
    try:
        return ImageName.parse(text)
    except RegistryError as error:
        raise InvalidCommand(f"{text[:200]!r} is not the name of an image: {error}") from error


def digest_field(fields: Mapping[str, Any], name: str) -> Digest:
    """Return a field that has to be a digest; raises `InvalidCommand`."""
    return parse_digest(text_field(fields, name))


def parse_digest(text: str) -> Digest:
    """Parse a digest; raises `InvalidCommand`."""
    try:
        return Digest.parse(text)
    except RegistryError as error:
        raise InvalidCommand(f"{text[:200]!r} is not a digest: {error}") from error


def flag_field(fields: Mapping[str, Any], name: str) -> bool:
    """Return a field that has to be true or false, false where it is missing; raises `InvalidCommand`."""
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise InvalidCommand(f"the field {name!r} is not true or false")
    return value


def query_value(request: web.Request, name: str) -> str:
    """Return a value of the query; raises `InvalidCommand` when it is missing."""
    value = request.query.get(name, "")
    if not value:
        raise InvalidCommand(f"the query {name!r} is missing")
    return value


async def json_answer(document: Mapping[str, Any]) -> web.Response:
    """Return an answer with this document; one with a long list is encoded in a thread."""
    is_large = any(isinstance(value, list) and len(value) > _LARGE for value in document.values())
    text = await asyncio.to_thread(_encode, document) if is_large else json.dumps(document)
    return web.Response(text=text, content_type="application/json")


def _encode(document: Mapping[str, Any]) -> str:
    """Encode each item of a list by itself, since the encoder does not let other threads run meanwhile."""
    members = []
    for name, value in document.items():
        text = f"[{','.join(map(json.dumps, value))}]" if isinstance(value, list) else json.dumps(value)
        members.append(f"{json.dumps(name)}:{text}")
    return f"{{{','.join(members)}}}"


async def stream_events(request: web.Request, events: AsyncGenerator[Event]) -> web.StreamResponse:
    """Answer with each event as a line of JSON, while the work is done. When the client disconnects, the work ends.

    An error before the first event is raised, later it is the last event: `{"done": true, "error": sentence}`.
    """
    async with aclosing(events) as running:
        first = await anext(running)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        await response.write(_line(first))
        try:
            async for event in running:
                await response.write(_line(event))
        except HubcacheError as error:
            await response.write(_line({"done": True, "error": str(error)}))
    await response.write_eof()
    return response


def _line(event: Event) -> bytes:
    return json.dumps(event).encode() + b"\n"

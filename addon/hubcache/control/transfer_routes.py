"""The paths by which images are fetched, exported and imported."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import web

from ..oci.digest import Digest
from ..oci.errors import ContentTooLarge, StorageError
from ..oci.manifest import MAX_MANIFEST
from ..oci.media import is_content_type
from .commands import Commands
from .errors import InvalidCommand
from .http import (
    digest_field,
    flag_field,
    image_field,
    json_answer,
    parse_digest,
    parse_image,
    read_fields,
    stream_events,
    text_field,
)

_PIECE = 1 << 20
"""Bytes of a blob that are read or written at once."""

_MAX_CONTENTS = 20_000
"""Digests that one request may name."""


def transfer_routes(commands: Commands) -> list[web.RouteDef]:
    """Return the routes."""
    return [*_image_routes(commands), *_content_routes(commands)]


def _image_routes(commands: Commands) -> list[web.RouteDef]:
    async def warm(request: web.Request) -> web.StreamResponse:
        fields = await read_fields(request, "images", "platforms", "keep")
        images, platforms = _texts(fields, "images"), _texts(fields, "platforms", is_optional=True)
        if not images:
            raise InvalidCommand("the field 'images' is missing or empty")
        run = commands.warm.prepare(images, platforms or None, keep=flag_field(fields, "keep"))
        return await stream_events(request, run)

    async def export(request: web.Request) -> web.Response:
        image = parse_image(request.query.get("name", ""))
        platforms = [text for text in request.query.get("platforms", "").split(",") if text]
        described = commands.export.describe(image, platforms or None)
        commands.content.keep(part["digest"] for part in (*described["blobs"], *described["manifests"]))
        return await json_answer(described)

    async def tag(request: web.Request) -> web.Response:
        fields = await read_fields(request, "image", "digest", "media_type", "referrers")
        referrers = [parse_digest(text) for text in _texts(fields, "referrers", is_optional=True)]
        image, digest = image_field(fields, "image"), digest_field(fields, "digest")
        media_type = _media_type(text_field(fields, "media_type"))
        return await json_answer(await commands.import_record.record(image, digest, media_type, referrers))

    return [web.post("/v1/warm", warm), web.get("/v1/export", export, allow_head=False), web.post("/v1/tag", tag)]


def _content_routes(commands: Commands) -> list[web.RouteDef]:
    async def expect(request: web.Request) -> web.Response:
        fields = await read_fields(request, "contents")
        return await json_answer({"missing": commands.content.expect(_sizes(fields.get("contents")))})

    async def get(request: web.Request) -> web.StreamResponse:
        return await _send(commands, request, parse_digest(request.match_info["digest"]))

    async def put(request: web.Request) -> web.Response:
        digest, media_type = parse_digest(request.match_info["digest"]), request.query.get("media_type")
        size = request.content_length
        if size is None:
            raise InvalidCommand("the request has no Content-Length")
        if media_type is None:
            await commands.content.put_blob(digest, size, _pieces(request))
        elif size > MAX_MANIFEST:
            raise ContentTooLarge(f"a manifest of {size} bytes is too large; expected {MAX_MANIFEST} at most")
        else:
            body = await request.content.readexactly(size)
            await commands.content.put_manifest(digest, _media_type(media_type), body)
        return await json_answer({"digest": digest, "size": size})

    path = "/v1/content/{digest}"
    return [web.post("/v1/content", expect), web.get(path, get, allow_head=False), web.put(path, put)]


async def _send(commands: Commands, request: web.Request, digest: Digest) -> web.StreamResponse:
    manifest = commands.content.manifest(digest)
    if manifest is not None:
        return web.Response(body=manifest.body, headers={"Content-Type": manifest.media_type})
    blob = await commands.content.open_blob(digest)
    try:
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = blob.size
        await response.prepare(request)
        for start in range(0, blob.size, _PIECE):
            data = await asyncio.to_thread(_read, blob.fd, min(_PIECE, blob.size - start), start)
            await response.write(data)
        await response.write_eof()
    finally:
        blob.close()
    return response


def _read(fd: int, count: int, at: int) -> bytes:
    """Read a part of a file; raises `StorageError`, which ends the connection before the body is complete."""
    try:
        data = os.pread(fd, count, at)
    except OSError as error:
        raise StorageError(f"stored content cannot be read: {error.strerror or error}") from error
    if len(data) < count:
        raise StorageError("stored content became shorter while it was read")
    return data


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    """Return the body in pieces of about `_PIECE` bytes."""
    buffer = bytearray()
    async for data in request.content.iter_any():
        buffer += data
        if len(buffer) >= _PIECE:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


def _texts(fields: Mapping[str, Any], name: str, *, is_optional: bool = False) -> list[str]:
    value = fields.get(name)
    if value is None and is_optional:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value) or len(value) > _MAX_CONTENTS:
        raise InvalidCommand(f"the field {name!r} is not a list of texts")
    return value


def _sizes(value: object) -> dict[Digest, int]:
    if not isinstance(value, dict) or len(value) > _MAX_CONTENTS:
        raise InvalidCommand(f"the field 'contents' does not have sizes by digest, {_MAX_CONTENTS} at most")
    sizes = {parse_digest(text): size for text, size in value.items()}
    if not all(type(size) is int and size >= 0 for size in sizes.values()):
        raise InvalidCommand("the field 'contents' has a size that is not a number of bytes")
    return sizes


def _media_type(text: str) -> str:
    """Check a text that clients receive as a header; raises `InvalidCommand`."""
    if not is_content_type(text):
        raise InvalidCommand(f"{text[:200]!r} is not a media type")
    return text

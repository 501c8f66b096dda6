"""A real registry as the backend of the stand-in Hub: content is read from it, pushes are forwarded to it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from . import media
from .content import MIB, Body, Manifest
from .reply import Reply

HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "host", "authorization", "expect", "server", "date"}


@dataclass(frozen=True)
class RemoteBody:
    """A blob that the real registry streams."""

    session: aiohttp.ClientSession
    url: str
    size: int

    async def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        if start >= stop:
            return
        async with self.session.get(self.url, headers={"Range": f"bytes={start}-{stop - 1}"}) as answer:
            answer.raise_for_status()
            async for chunk in answer.content.iter_chunked(MIB // 4):
                yield chunk


class Remote:
    """The content of the registry at `base` (`http://localhost:5001`), which requires no credentials."""

    def __init__(self, base: str) -> None:
        self.base = base.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The HTTP session; created on first use, in the server's own event loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def has(self, repo: str) -> bool:
        async with self.session.get(f"{self.base}/v2/{repo}/tags/list") as answer:
            return answer.status == 200

    async def manifest(self, repo: str, reference: str) -> Manifest | None:
        accept = {"Accept": ", ".join((*media.INDEXES, *media.MANIFESTS))}
        async with self.session.get(f"{self.base}/v2/{repo}/manifests/{reference}", headers=accept) as answer:
            if answer.status != 200:
                return None
            return Manifest(await answer.read(), answer.headers["Content-Type"])

    async def blob(self, repo: str, digest: str) -> Body | None:
        url = f"{self.base}/v2/{repo}/blobs/{digest}"
        async with self.session.head(url) as answer:
            if answer.status != 200:
                return None
            return RemoteBody(self.session, url, int(answer.headers["Content-Length"]))

    async def tags(self, repo: str) -> list[str]:
        async with self.session.get(f"{self.base}/v2/{repo}/tags/list") as answer:
            return list((await answer.json())["tags"] or []) if answer.status == 200 else []

    async def referrers(self, repo: str, digest: str) -> list[dict[str, Any]]:
        return []

    async def write(self, request: web.Request) -> Reply:
        """Forward an upload, a manifest PUT or a DELETE."""
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        data = request.content if request.body_exists else b""
        async with self.session.request(
            request.method, self.base + request.raw_path, headers=headers, data=data, allow_redirects=False
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            kept.pop("Content-Length", None)
            if location := answer.headers.get("Location"):
                parts = urlsplit(location)
                kept["Location"] = parts.path + (f"?{parts.query}" if parts.query else "")
            return Reply(answer.status, kept, await answer.read())

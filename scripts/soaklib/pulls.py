"""Clients that pull images as engines do and verify each body; some leave, stall or reconnect."""

import asyncio
import hashlib
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from support.program import ACCEPT, HUB_HOST, Program
from support.standin import Image

_ATTEMPTS = 5
"""Requests for one body at most. dockerd requests a layer five times; manifests have as many attempts here, because the
program may be killed while it answers them."""

_PAUSE_SECONDS = 0.3
_LEAVERS, _STALLERS, _RECONNECTERS = 0.05, 0.02, 0.001
"""Probabilities: that a client gives up a pull, that it pauses while it reads a body, and that it reconnects after a
chunk."""

_STALL_SECONDS = 3.0
_AT_ONCE = 3
"""Layers of a pull that are downloaded at the same time, as dockerd does."""

_LONGEST_SECONDS = 120.0
_CHUNK = 64 << 10


@dataclass
class Pull:
    """One pull of an image: when it began and ended (monotonic seconds), and its error, empty when it succeeded."""

    image: str
    door: str
    begun: float
    ended: float = 0.0
    error: str = ""


@dataclass
class Results:
    """What all clients recorded."""

    pulls: list[Pull] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Bodies that were complete and did not match their digest."""
    requests: int = 0


class WrongBytesError(Exception):
    """A complete body does not match its digest."""


class Clients:
    """Clients that pull images until `stop`, the first images most often."""

    def __init__(self, program: Program, images: list[Image], seed: int, most_requests: int) -> None:
        self.results = Results()
        self.urls = {"proxy": f"https://{HUB_HOST}", "mirror": f"http://127.0.0.1:{program.mirror}"}
        self.proxy = f"http://127.0.0.1:{program.proxy}"
        self.trust = program.ssl_context()
        self._images = images
        self._weights = [1 / (rank + 1) for rank in range(len(images))]
        self._random = random.Random(seed)
        self._most = most_requests
        self._stopping = False

    def stop(self) -> None:
        """Start no more pulls."""
        self._stopping = True

    async def run(self, count: int) -> None:
        """Run `count` clients, until `stop` or until they have sent as many requests as they may."""
        connector = aiohttp.TCPConnector(force_close=True, limit=0)  # as dockerd: a new connection for each request
        timeout = aiohttp.ClientTimeout(total=None, sock_read=60.0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(self._client(session, "mirror" if number % 2 else "proxy"))

    async def _client(self, session: aiohttp.ClientSession, door: str) -> None:
        while not self._stopping and self.results.requests < self._most:
            [image] = self._random.choices(self._images, self._weights)
            pull = Pull(f"{image.repo}:{image.tag}", door, time.monotonic())
            try:
                async with asyncio.timeout(_LONGEST_SECONDS):
                    await _OnePull(self, session, door, random.Random(self._random.random())).run(image)
            except (OSError, aiohttp.ClientError, TimeoutError) as error:
                pull.error = f"{type(error).__name__}: {error}"
            except WrongBytesError as error:
                pull.error = str(error)
                self.results.wrong.append(f"{pull.image}: {error}")
            pull.ended = time.monotonic()
            self.results.pulls.append(pull)
            await asyncio.sleep(0.05)


class _OnePull:
    """Pulls one image: its manifest by tag, then its config and layers."""

    def __init__(self, clients: Clients, session: aiohttp.ClientSession, door: str, chosen: random.Random) -> None:
        self._results = clients.results
        self._session = session
        self._base = clients.urls[door]
        self._random = chosen
        self._more: dict[str, Any] = {"proxy": clients.proxy, "ssl": clients.trust} if door == "proxy" else {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def run(self, image: Image) -> None:
        """Pull, or raise the error that ended the pull."""
        body = await self._whole(f"/v2/{image.repo}/manifests/{image.tag}", image.digest)
        manifest = json.loads(body)
        digests = [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
        if self._random.random() < _LEAVERS:
            return await self._leave(image.repo, digests[-1])
        blobs = (self._blob(image.repo, digest) for digest in digests)
        outcomes = await asyncio.gather(*blobs, return_exceptions=True)
        for error in outcomes:
            if isinstance(error, BaseException):
                raise error

    async def _blob(self, repository: str, digest: str) -> None:
        async with self._slots:
            await self._whole(f"/v2/{repository}/blobs/{digest}", digest)

    async def _leave(self, repository: str, digest: str) -> None:
        """Read the first bytes of a blob and close the connection."""
        async with self._get(f"/v2/{repository}/blobs/{digest}", 0) as response:
            await response.content.read(_CHUNK)

    def _get(self, path: str, start: int) -> Any:
        self._results.requests += 1
        headers = ACCEPT | ({"Range": f"bytes={start}-"} if start else {})
        return self._session.get(self._base + path, headers=headers, **self._more)

    async def _whole(self, path: str, digest: str) -> bytes:
        """Download a whole body, and resume it where a connection broke.

        Raises `WrongBytesError` when the body came in one answer and does not match its digest. A body from several
        answers may contain bytes of a transfer that was cut because it was corrupt: it is requested again, as clients
        do."""
        received = bytearray()
        for attempt in range(_ATTEMPTS):
            start = len(received)
            try:
                await self._read_on(path, received)
            except (OSError, aiohttp.ClientError, TimeoutError):
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                if f"sha256:{hashlib.sha256(received).hexdigest()}" == digest:
                    return bytes(received)
                if not start:
                    raise WrongBytesError(f"{path}: {len(received)} bytes that do not match the digest")
                if attempt == _ATTEMPTS - 1:
                    raise OSError(f"{path}: the body from several answers does not match its digest")
                received.clear()
            await asyncio.sleep(_PAUSE_SECONDS * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _read_on(self, path: str, received: bytearray) -> None:
        stalls = self._random.random() < _STALLERS
        async with self._get(path, len(received)) as response:
            response.raise_for_status()
            if response.status == 200:
                received.clear()
            whole = len(received) + (response.content_length or 0)
            async for chunk in response.content.iter_chunked(_CHUNK):
                received += chunk
                if stalls:
                    stalls = False
                    await asyncio.sleep(_STALL_SECONDS)
                if len(received) < whole and self._random.random() < _RECONNECTERS:
                    raise ConnectionResetError("the client reconnects in the middle of the body")

"""Clients of the soak: they pull as engines do, some leave, stall or come back, and each verifies what it gets."""

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
"""dockerd asks for a layer five times; the others ask for all else as often here, for the fault may be a kill."""

_PAUSE_SECONDS = 0.3
_LEAVERS, _STALLERS, _RECONNECTERS = 0.05, 0.02, 0.001
"""Parts of pulls that are given up, of bodies read with a pause, and of chunks after which a client reconnects."""

_STALL_SECONDS = 3.0
_AT_ONCE = 3
"""Layers at a time, as dockerd."""

_LONGEST_SECONDS = 120.0
_CHUNK = 64 << 10


@dataclass
class Pull:
    """One pull of an image: when, and how it ended."""

    image: str
    door: str
    begun: float
    ended: float = 0.0
    error: str = ""


@dataclass
class Results:
    """What all clients saw."""

    pulls: list[Pull] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Bodies that were complete and did not have their digest."""
    requests: int = 0
    bytes: int = 0
    left: int = 0
    """Pulls that their client gave up on purpose."""


class WrongBytesError(Exception):
    """A complete body does not have its digest."""


class Clients:
    """Pull images of a Hub until told to stop, the first of them the most."""

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
        """Begin no more pulls."""
        self._stopping = True

    async def run(self, count: int) -> None:
        """So many clients at a time, until `stop`."""
        connector = aiohttp.TCPConnector(force_close=True, limit=0)  # as dockerd: each request is a new connection
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
    """Tag, manifest, config and layers; some clients leave, stall, or begin again in the middle."""

    def __init__(self, clients: Clients, session: aiohttp.ClientSession, door: str, chosen: random.Random) -> None:
        self._results = clients.results
        self._session = session
        self._base = clients.urls[door]
        self._random = chosen
        self._more: dict[str, Any] = {"proxy": clients.proxy, "ssl": clients.trust} if door == "proxy" else {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def run(self, image: Image) -> None:
        """Raises what ended the pull."""
        body = await self._whole(f"/v2/{image.repo}/manifests/{image.tag}", image.digest)
        manifest = json.loads(body)
        digests = [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
        if self._random.random() < _LEAVERS:
            self._results.left += 1
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
        """Read a little and go."""
        async with self._get(f"/v2/{repository}/blobs/{digest}", 0) as response:
            await response.content.read(_CHUNK)

    def _get(self, path: str, start: int) -> Any:
        self._results.requests += 1
        headers = ACCEPT | ({"Range": f"bytes={start}-"} if start else {})
        return self._session.get(self._base + path, headers=headers, **self._more)

    async def _whole(self, path: str, digest: str) -> bytes:
        """All of a body, resumed where it broke off. Raises `WrongBytesError` where one answer alone was complete and
        does not have its digest; what came in pieces may hold some of a transfer that broke off because it was wrong,
        and is asked for anew, as clients do."""
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
                    self._results.bytes += len(received)
                    return bytes(received)
                if not start:
                    raise WrongBytesError(f"{path}: {len(received)} bytes that do not have their digest")
                if attempt == _ATTEMPTS - 1:
                    raise OSError(f"{path}: what came in pieces does not have its digest")
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
                    raise ConnectionResetError("the client begins again in the middle")

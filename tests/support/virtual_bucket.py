"""A bucket in memory whose requests take virtual time, overtake each other, and fail before or after their effect."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hubcache.fleet.bucket import Bucket, BucketUnavailable, Entry, StoredObject

from .virtual_time import virtual_now

PAGE = 5
"""Objects of a page of a list: pages show the bucket at different moments."""


@dataclass
class Objects:
    """The objects of a bucket, and the most bytes that it ever had."""

    by_key: dict[str, tuple[int, bytes, Entry]] = field(default_factory=dict)
    bytes: int = 0
    most: int = 0
    written: int = 0
    """Sum of the sizes of all objects that were written."""
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def write(self, key: str, value: bytes, size: int | None = None, age: float = 0.0) -> str:
        """Write an object, `age` seconds ago; `size` is its size if that is not the one of the value."""
        self.remove(key)
        entry = Entry(key, len(value) if size is None else size, virtual_now() - age, str(next(self.numbers)))
        self.by_key[key] = entry.size, value, entry
        self.bytes += entry.size
        self.written += entry.size
        self.most = max(self.most, self.bytes)
        return entry.e_tag

    def remove(self, key: str) -> None:
        if key in self.by_key:
            self.bytes -= self.by_key.pop(key)[0]

    def page(self, prefix: str, after: str) -> list[Entry]:
        keys = sorted(key for key in self.by_key if key.startswith(prefix) and key > after)
        return [self.by_key[key][2] for key in keys[:PAGE]]

    def sizes(self, kind: str) -> int:
        """Return the bytes of all objects whose keys begin with `kind`."""
        return sum(size for key, (size, _, _) in self.by_key.items() if key.startswith(f"{kind}/"))

    def e_tag(self, key: str) -> str | None:
        return self.by_key[key][2].e_tag if key in self.by_key else None


class VirtualBucket(Bucket):
    """One node's connection to the bucket. `lossy` is the share of requests that fail, half of them after they were
    applied; `latency` is in seconds, and one of a hundred requests takes a hundred times as long."""

    def __init__(self, objects: Objects, lossy: float = 0.0, latency: float = 0.02) -> None:
        self.objects = objects
        self.lossy = lossy
        self.latency = latency
        self.is_cut_off = False
        """Whether the node has crashed or lost its network: requests that are under way are still applied."""
        self.loses_responses = False
        """Whether all writes are applied and reported as failed."""
        self._under_way: set[asyncio.Task[Any]] = set()

    async def get(self, key: str) -> StoredObject | None:
        def read() -> StoredObject | None:
            found = self.objects.by_key.get(key)
            return None if found is None else StoredObject(found[1], found[2])

        return await self._request(read)

    async def put(self, key: str, value: bytes) -> str:
        return await self._request(lambda: self.objects.write(key, value))

    async def create(self, key: str, value: bytes) -> str | None:
        def write() -> str | None:
            return None if key in self.objects.by_key else self.objects.write(key, value)

        return await self._request(write)

    async def replace(self, key: str, value: bytes, e_tag: str) -> str | None:
        def write() -> str | None:
            return self.objects.write(key, value) if self.objects.e_tag(key) == e_tag else None

        written = await self._request(write)
        if self.loses_responses:
            raise BucketUnavailable("the response was lost")
        return written

    async def delete(self, *keys: str) -> None:
        def remove() -> None:
            for key in keys:
                self.objects.remove(key)

        await self._request(remove)

    async def list(self, prefix: str) -> AsyncIterator[Entry]:
        last = f"{prefix}/"
        while True:
            page = await self._request(partial(self.objects.page, f"{prefix}/", last))
            for entry in page:
                yield entry
            if len(page) < PAGE:
                return
            last = page[-1].key

    async def upload_bytes(self, key: str, size: int, seconds: float) -> None:
        """Write a blob of `size` bytes, which takes this long. It appears at the end, also when nobody waits for it."""
        await self._request(lambda: self.objects.write(key, b"", size), seconds)

    async def _request[Result](self, apply: Callable[[], Result], seconds: float = 0.0) -> Result:
        if self.is_cut_off:
            raise BucketUnavailable("cut off")
        task = asyncio.create_task(self._applied(apply, seconds))
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may wait for it any more

    async def _applied[Result](self, apply: Callable[[], Result], seconds: float) -> Result:
        slow = 100.0 if random.random() < 0.01 else 1.0
        await asyncio.sleep(seconds + random.uniform(0, self.latency) * slow)
        if random.random() < self.lossy / 2:
            raise BucketUnavailable("the request was lost")
        result = apply()
        await asyncio.sleep(random.uniform(0, self.latency) * slow)
        if random.random() < self.lossy / 2 or self.is_cut_off:
            raise BucketUnavailable("the response was lost")
        return result

"""Sources of bodies that a worker receives from the owner instead of reading a file itself."""

from collections.abc import Awaitable, Callable

from ..oci.errors import Unavailable
from ..serve.messages import Answer, Forward, Request
from ..transfer.sources import CHUNK, Source


class OwnerSource(Source):
    """A source that the owner reads: bytes from the upstream, or of a token service's answer.

    `received` are the bytes that came with the answer. `read_next` returns the next bytes and whether they were the
    last; `release` has the owner close its source.
    """

    def __init__(
        self,
        read_next: Callable[[], Awaitable[tuple[bytes, bool]]],
        release: Callable[[], None],
        origin: str,
        finished: bool,
        received: bytes = b"",
    ) -> None:
        self.origin = origin
        self._received = received
        self._finished = finished
        """Whether the owner has no more bytes."""
        self._read_next = read_next
        self._release = release

    async def read(self, most: int = CHUNK) -> bytes:
        if self._received or self._finished:
            data, self._received = self._received, b""
        else:
            data, self._finished = await self._read_next()
        return data

    @property
    def finished(self) -> bool:
        return self._finished and not self._received

    async def close(self) -> None:
        self._release()


class RangeRequestSource(Source):
    """The rest of a body, by a `request` for its range that is answered when the source is first read."""

    origin = "upstream"

    def __init__(self, answer: Callable[[Request], Awaitable[Answer | Forward | None]], request: Request) -> None:
        self._answer = answer
        self._request = request
        self._source: Source | None = None

    async def read(self, most: int = CHUNK) -> bytes:
        if self._source is None:
            answer = await self._answer(self._request)
            if isinstance(answer, Answer):
                self._source = answer.source
            if not isinstance(answer, Answer) or answer.status != 206 or self._source is None:
                raise Unavailable("the rest of the blob cannot be fetched")
        return await self._source.read(most)

    @property
    def finished(self) -> bool:
        return self._source is not None and self._source.finished

    async def close(self) -> None:
        if self._source is not None:
            await self._source.close()

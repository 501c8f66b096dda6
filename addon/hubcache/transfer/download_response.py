"""The response to the request of a download, in whose place the other requests get `aiohttp.ClientResponse`."""

import http.client
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

type Consume = Callable[[memoryview], bool]
"""Gets the bytes of a body, in a thread, and returns whether to continue."""


_FOLD = re.compile(r"[ \t]*\r?\n[ \t]*")
"""A line break in a field value (RFC 9112 section 5.2), which `http.client` keeps."""


class DownloadResponse:
    """A response whose body is received in a thread; its attributes are those of `aiohttp.ClientResponse`."""

    def __init__(
        self,
        url: URL,
        response: http.client.HTTPResponse,
        discarded: bytes,
        receive: Callable[[Consume], Awaitable[bool]],
        release: Callable[[], None],
    ) -> None:
        """`discarded` is the small body of an error or a redirect. `receive` passes the body of a blob on; `release`
        is called when the response is not used any more."""
        self.url = url
        self.status = response.status
        self.headers = CIMultiDictProxy(
            CIMultiDict((name, _field_value(value)) for name, value in response.getheaders())
        )
        self._response = response
        self._small_body = discarded
        self._receive = receive
        self._release = release

    @property
    def content(self) -> Self:
        """The small body of an error or a redirect."""
        return self

    @property
    def content_type(self) -> str:
        """The media type without parameters."""
        return self._response.headers.get_content_type() if "Content-Type" in self.headers else ""

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Yield the small body of an error or a redirect."""
        yield self._small_body

    def release(self) -> None:
        """Keep the connection for another request, or close it if the body was not read to its end."""
        self._release()

    async def receive(self, consume: Consume) -> bool:
        """Pass the body to `consume`, in a thread, until that returns False; returns whether the body has ended.

        Raises `aiohttp.ClientError` or `TimeoutError` when the transfer breaks off.
        """
        try:
            return await self._receive(consume)
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise aiohttp.ClientPayloadError(type(error).__name__) from error


def _field_value(value: str) -> str:
    """Return a field value in one line, and decoded as aiohttp does it."""
    return _FOLD.sub(" ", value).encode("latin-1").decode("utf-8", "surrogateescape")

"""What is read of a response, whichever client received it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from multidict import CIMultiDictProxy
from yarl import URL


class HttpBody(Protocol):
    """A body that is small enough for memory."""

    def iter_any(self) -> AsyncIterator[bytes]:
        """Yield bytes as they arrive."""


class HttpResponse(Protocol):
    """A response, as `aiohttp.ClientResponse` has it."""

    status: int

    @property
    def url(self) -> URL:
        """The URL that was requested."""

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The headers."""

    @property
    def content_type(self) -> str:
        """The media type without parameters."""

    @property
    def content(self) -> HttpBody:
        """The body."""


type Send[R: HttpResponse] = Callable[..., AbstractAsyncContextManager[R]]
"""Sends one request: `UpstreamClient.send` or `UpstreamClient.download`."""

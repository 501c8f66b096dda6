"""The body of a blob while it arrives from an upstream."""

from collections.abc import AsyncIterator

import aiohttp

from ..oci.errors import Unavailable
from .observer import Observer


class BlobBody:
    """A blob's body from byte `start`; `size` is that of the whole blob, None when the upstream does not report it."""

    def __init__(self, response: aiohttp.ClientResponse, start: int, size: int | None, observer: Observer) -> None:
        self.start = start
        self.size = size
        self._response = response
        self._observer = observer

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield bytes as they arrive; raises `Unavailable` when the connection breaks, stalls or ends early."""
        host = self._response.url.authority
        try:
            async for chunk in self._response.content.iter_any():
                self._observer.upstream_bytes(host, len(chunk))
                yield chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"transfer from {host} broke off: {type(error).__name__}") from error

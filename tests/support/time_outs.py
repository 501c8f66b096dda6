"""Short time-outs of requests to a stand-in Hub that does not answer, which in production would last half a minute."""

from typing import Any

import aiohttp
import pytest
from hubcache.transfer import session
from hubcache.transfer.download_connection import DownloadConnection
from yarl import URL

from support.standin.hub import RUNNING

SECONDS = 1.0
_SHORT = aiohttp.ClientTimeout(total=None, sock_connect=SECONDS, sock_read=SECONDS)


def short_time_outs(patch: pytest.MonkeyPatch) -> None:
    """Give up requests after `SECONDS` without progress, while a Hub is silent on purpose.

    At other times they have the time-outs of production, because a busy machine exceeds short ones.
    """
    request: Any = aiohttp.ClientSession._request

    async def send(client: aiohttp.ClientSession, method: str, url: str | URL, **options: Any) -> Any:
        if any(hub.is_silent for hub in RUNNING):
            options.setdefault("timeout", _SHORT)
        return await request(client, method, url, **options)

    patch.setattr(aiohttp.ClientSession, "_request", send)
    send_in_thread: Any = DownloadConnection.send

    def send_download(connection: DownloadConnection, *arguments: Any) -> Any:
        is_silent = any(hub.is_silent for hub in RUNNING)
        connection._tcp.settimeout(SECONDS if is_silent else session.PROGRESS_SECONDS)
        return send_in_thread(connection, *arguments)

    patch.setattr(DownloadConnection, "send", send_download)

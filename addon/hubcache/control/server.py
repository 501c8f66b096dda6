"""Serves the control socket: HTTP with JSON on a Unix socket in the store's directory.

A holder of the socket may do everything that the commands can, so that the socket's mode (0600) is the only access
control: the user that runs the cache and root can connect. Nothing on the network reaches it.
"""

import logging
from collections.abc import Iterable

from aiohttp import web

from ..oci.errors import StorageError
from ..store.store import Store
from .http import MAX_BODY, errors_as_json
from .socket_file import SocketFile

logger = logging.getLogger("hubcache")

_CLOSE_SECONDS = 0.5
"""Seconds that running commands have to end when the program stops; then they are cancelled."""


class ControlServer:
    """The server of the control socket, which is open while the store is: the store's lock proves that no other process
    uses the socket. A socket that cannot be opened is logged once; the cache works without it.
    """

    def __init__(self, store: Store, routes: Iterable[web.RouteDef]) -> None:
        self._store = store
        self._file = SocketFile(store.directory)
        self._routes = tuple(routes)
        self._runner: web.AppRunner | None = None
        self._is_closed = False
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the socket is not open, or None."""
        return self._problem

    async def keep_open(self) -> None:
        """Open the socket when the store is open and the socket is not, or its file was deleted. To be called at the
        start and from time to time."""
        if self._is_closed or not self._store.is_open:
            return
        if self._runner is not None:
            if self._file.is_in_place:
                return
            await self._stop()
        app = web.Application(middlewares=[errors_as_json], client_max_size=MAX_BODY)
        app.add_routes(self._routes)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_CLOSE_SECONDS)
        await runner.setup()
        try:
            await web.SockSite(runner, self._file.open()).start()
        except StorageError as error:
            await runner.cleanup()
            if self._problem != str(error):
                self._problem = str(error)
                logger.warning("hubcache: %s; the hubcache command cannot reach this cache", error)
            return
        self._runner, self._problem = runner, None

    async def close(self) -> None:
        """Cancel running commands, close all connections and remove the socket."""
        self._is_closed = True
        await self._stop()

    async def _stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            self._file.remove()
            await runner.cleanup()

"""The commands of the running cache, and the control socket that offers them."""

from .commands import Commands
from .parts import Parts
from .routes import all_routes
from .server import ControlServer


class Control:
    """All `commands`, and their socket from `keep_open` to `close`."""

    def __init__(self, parts: Parts) -> None:
        self.commands = Commands(parts)
        self._server = ControlServer(parts.store, all_routes(self.commands))

    async def keep_open(self) -> None:
        """See `ControlServer.keep_open`."""
        await self._server.keep_open()

    async def close(self) -> None:
        """See `ControlServer.close`."""
        await self._server.close()

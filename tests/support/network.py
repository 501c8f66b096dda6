"""A network that does not exist: host names with public addresses, whose listeners are at loopback.

`install` changes name resolution and connections of this process. A program gets it as a script, see `script`.
"""

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

PUBLIC = "203.0.113.1"
"""An address that no machine has (RFC 5737); connections to it go to loopback."""


def resolve_names(names: Mapping[str, str]) -> Any:
    """Return a `socket.getaddrinfo` that knows these names and their addresses, too."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **fields: Any) -> Any:
        return real(names.get(host, host), *more, **fields)

    return getaddrinfo


def connect_to_loopback() -> Any:
    """Return a `sock_connect` of event loops that connects to loopback in place of `PUBLIC`."""
    real = asyncio.selector_events.BaseSelectorEventLoop.sock_connect

    async def sock_connect(loop: Any, sock: socket.socket, address: Any) -> None:
        await real(loop, sock, ("127.0.0.1", *address[1:]) if address[0] == PUBLIC else address)

    return sock_connect


def install(monkeypatch: pytest.MonkeyPatch, names: Mapping[str, str]) -> None:
    """Have names resolve to these addresses, and `PUBLIC` lead to loopback. `names` may change later."""
    monkeypatch.setattr(socket, "getaddrinfo", resolve_names(names))
    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", connect_to_loopback())


def script(directory: Path, names: Mapping[str, str]) -> Path:
    """Write a script for mitmdump that does the same in its process, and return its path."""
    path = directory / "network.py"
    path.write_text(
        f"import asyncio, socket, sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from support.network import connect_to_loopback, resolve_names\n"
        f"socket.getaddrinfo = resolve_names({dict(names)!r})\n"
        "asyncio.selector_events.BaseSelectorEventLoop.sock_connect = connect_to_loopback()\n"
    )
    return path

"""The functions that use mitmproxy's table of connection handlers."""

from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.mitm import proxyserver
from mitmproxy.connection import Client


def test_connection_is_closed_as_by_mitmproxys_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=1.0) for _ in range(2)]
    cancelled: list[tuple[Client, str]] = []

    def handler(client: Client) -> Any:
        task = SimpleNamespace(cancel=lambda reason: cancelled.append((client, reason)))
        return SimpleNamespace(client=client, transports={client: SimpleNamespace(handler=task)})

    handlers = {clients[0].id: handler(clients[0])}
    monkeypatch.setattr(proxyserver, "connection_handlers", lambda: handlers)
    for client in clients:  # the second is not connected any more
        proxyserver.disconnect(client)
    assert cancelled == [(clients[0], "timeout")]

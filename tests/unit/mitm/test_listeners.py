"""Listeners that a worker inherits."""

import socket
from collections.abc import Iterator

import pytest
from hubcache.mitm import listeners
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy.mode_servers import AsyncioServerInstance
from support.mitm import taddons


@pytest.fixture
def inherited(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A listening socket that this process inherited for the mode `regular@18080`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv(listeners.DESCRIPTORS, f'{{"regular@18080": [{listening.fileno()}]}}')
        monkeypatch.setattr(AsyncioServerInstance, "listen", AsyncioServerInstance.listen)
        listeners.inherit()
        yield listening.dup()
        listening.detach()  # closed with its listener


async def test_worker_opens_the_default_mode_of_mitmproxy_without_an_error(
    inherited: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    proxyserver = Proxyserver()
    with taddons.context(proxyserver) as context:
        context.options.update(mode=["regular"])
        assert await proxyserver.setup_servers()
        assert [server.listen_addrs for server in proxyserver.servers] == [()]
        context.options.update(mode=["regular@18080"])
        assert await proxyserver.setup_servers()
        assert [server.listen_addrs for server in proxyserver.servers] == [(inherited.getsockname(),)]
        await proxyserver.servers.update([])
    inherited.close()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []

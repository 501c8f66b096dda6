"""The addon in a mitmproxy that opens no listeners, with flows made by the test."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hubcache.oci.registry import HUB_HOST
from hubcache.startup import Hubcache
from mitmproxy.addons.modifyheaders import ModifyHeaders
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.addons.upstream_auth import UpstreamAuth
from mitmproxy.http import HTTPFlow, Response
from mitmproxy.proxy.mode_specs import ProxyMode

from support.mitm import taddons, tflow
from support.standin import Hub

REPO = "library/app"


class AddonHarness:
    """The addon, its flow hooks, and the mitmproxy that it is in."""

    def __init__(self, context: taddons.context, addon: Hubcache) -> None:
        self.context = context
        self.addon = addon
        self.hooks = addon._flows

    @property
    def engine(self) -> Any:
        return self.addon._engine

    async def request(
        self, method: str, path: str, listener: str = "mirror", host: str = HUB_HOST, **headers: str
    ) -> HTTPFlow:
        """Return a flow after the hook for its request head."""
        flow = tflow.tflow()
        mode = f"reverse:https://{HUB_HOST}@5000" if listener == "mirror" else "regular"
        flow.client_conn.proxy_mode = ProxyMode.parse(mode)
        flow.request.url = f"https://{host}{path}"
        flow.request.method = method
        flow.request.headers.clear()
        for name, value in headers.items():
            flow.request.headers[name.replace("_", "-")] = value
        await self.hooks.requestheaders(flow)
        return flow

    async def body(self, flow: HTTPFlow) -> bytes:
        """Return the body that the client would get, requested from the body listener as mitmproxy does."""
        reader, writer = await asyncio.open_connection(flow.request.host, flow.request.port)
        writer.write(f"GET {flow.request.path} HTTP/1.1\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        flow.response = Response.make(200)
        self.hooks.responseheaders(flow)
        assert flow.response is not None
        take: Any = flow.response.stream
        parts = []
        while (line := await reader.readline()) not in (b"0\r\n", b""):
            parts.append(take((await reader.readexactly(int(line, 16) + 2))[:-2]))
        writer.close()
        await writer.wait_closed()
        take(b"")
        self.hooks.response(flow)
        return b"".join(parts)


@contextmanager
def loaded_addon(hub: Hub, directory: Path) -> Iterator[AddonHarness]:
    """Load the addon with a store and a CA in `directory`, in front of `hub`. It is not started."""
    addon = Hubcache()
    with taddons.context(Proxyserver(), NextLayer(), TlsConfig(), ModifyHeaders(), UpstreamAuth(), addon) as context:
        context.options.update(
            confdir=str(directory / "ca"),
            hubcache_dir=str(directory / "store"),
            hubcache_registries=[f"{HUB_HOST}={hub.url()}"],
            hubcache_status="",
            server=False,  # no listeners
        )
        yield AddonHarness(context, addon)


def harness_fixture() -> Any:
    """Return a fixture for the started addon."""

    @pytest.fixture
    async def harness(hub: Hub, tmp_path: Path) -> AsyncIterator[AddonHarness]:
        with loaded_addon(hub, tmp_path) as loaded:
            await loaded.addon.running()
            yield loaded
            await loaded.addon.done()

    return harness

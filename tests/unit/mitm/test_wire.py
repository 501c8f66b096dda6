"""Answers with a body: straight to the client where that is the same for it, else by mitmproxy; never a mixture."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.mitm.http1_server import Delivered
from hubcache.mitm.tls import Connection
from hubcache.mitm.wire import HOOKS, Wires
from hubcache.oci.errors import HubcacheError
from hubcache.serve.messages import Answer, Result
from hubcache.transfer.pump import Pump
from hubcache.transfer.sources import BytesSource
from mitmproxy import tls
from mitmproxy.http import HTTPFlow
from mitmproxy.options import Options
from mitmproxy.proxy import context
from mitmproxy.proxy.layer import NextLayer
from mitmproxy.proxy.layers import ClientTLSLayer
from mitmproxy.proxy.server import ConnectionIO
from OpenSSL import SSL
from support import program
from support.http_client import PATIENCE, Exchange, head
from support.mitm import tflow
from support.program import HUB_HOST, Door, Rig
from support.standin import Hub, random_bytes

rig, door = program.fixtures(hubcache_tag_ttl="600")
LARGE = 5_000_000
BY_PUMP = "server connect 127.0.0.1"
"""What mitmproxy logs of a connection to the pump."""


def answers(door: Door, digest: str, times: int, **headers: str) -> list[bytes]:
    """Bodies of one blob, one after the other on one connection."""
    bodies = []
    with door.connect() as kept:
        for _ in range(times):
            kept.sendall(head("GET", f"/v2/{door.repo}/blobs/{digest}", {"Host": HUB_HOST} | headers))
            bodies.append(Exchange(kept, "GET").finish().body)
    return bodies


def test_bodies_go_straight_also_on_a_kept_connection(door: Door, rig: Rig) -> None:
    data = random_bytes(LARGE, door.repo)
    digest = door.hub.blob(door.repo, data)
    said = len(rig.product.log)
    assert answers(door, digest, 3) == [data] * 3
    assert answers(door, digest, 2, range="bytes=70000-4000000") == [data[70_000:4_000_001]] * 2
    assert BY_PUMP not in rig.product.log[said:]


@pytest.mark.parametrize("hook", HOOKS)
def test_other_addons_see_answers_as_ever(hub: Hub, tmp_path: Path, hook: str) -> None:
    script = tmp_path / "listens.py"
    script.write_text(f"def {hook}(flow):\n    print('heard of', flow.request.url, flush=True)\n")
    with program.running(hub, hubcache_tag_ttl="600") as rig:
        rig.product.stop()
        rig.product.command += ["-s", str(script)]
        rig.product.start()
        for name in program.DOORS:
            door = rig.door(name)
            data = random_bytes(LARGE, door.repo)
            digest = hub.blob(door.repo, data)
            assert answers(door, digest, 2) == [data] * 2
        assert "heard of" in rig.product.log
        assert BY_PUMP in rig.product.log


def test_headers_that_an_option_adds_are_added_to_bodies_too(hub: Hub) -> None:
    with program.running(hub, modify_headers="/~s/x-added/yes") as rig:
        for name in program.DOORS:
            door = rig.door(name)
            data = random_bytes(LARGE, door.repo)
            answer = door.blob(hub.blob(door.repo, data))
            assert (answer.body == data, answer.headers["x-added"]) == (True, "yes")


def test_body_in_tls_within_tls_goes_through_both(rig: Rig) -> None:
    """The client speaks TLS to the proxy, too."""
    door = rig.door("proxy")
    data = random_bytes(LARGE, door.repo)
    digest = door.hub.blob(door.repo, data)
    said = len(rig.product.log)
    outer = ssl.create_default_context()
    outer.check_hostname, outer.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", rig.product.proxy), PATIENCE) as plain, outer.wrap_socket(plain) as way:
        way.sendall(head("CONNECT", f"{HUB_HOST}:443", {"Host": f"{HUB_HOST}:443"}))
        assert way.recv(4096).startswith(b"HTTP/1.1 200")
        inner = Inner(way, rig.product.trust())
        inner.send(head("GET", f"/v2/{door.repo}/blobs/{digest}", {"Host": HUB_HOST, "Connection": "close"}))
        received = b"".join(inner.receive())
    assert received.partition(b"\r\n\r\n")[2] == data
    assert BY_PUMP in rig.product.log[said:]


class Inner:
    """TLS with the registry inside of TLS with the proxy."""

    def __init__(self, way: ssl.SSLSocket, trust: ssl.SSLContext) -> None:
        self._way = way
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trust.wrap_bio(self._arrived, self._leaving, server_hostname=HUB_HOST)

    def send(self, data: bytes) -> None:
        while True:
            try:
                self._tls.write(data)
            except ssl.SSLWantReadError:
                self._exchange()
            else:
                self._way.sendall(self._leaving.read())
                return

    def receive(self) -> Iterator[bytes]:
        while True:
            try:
                yield self._tls.read(65536)
            except ssl.SSLWantReadError:
                if not self._exchange():
                    return

    def _exchange(self) -> bool:
        if self._leaving.pending:
            self._way.sendall(self._leaving.read())
        data = self._way.recv(65536)
        self._arrived.write(data)
        return bool(data)


# -- what is taken ---------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """A client's connection as mitmproxy handles it, its other end, and a flow that came over it."""

    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader
    patience: float = 60.0
    flow: HTTPFlow = field(default_factory=tflow.tflow)
    wires: Wires = field(default_factory=Wires)
    failures: list[HubcacheError] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pump = Pump(lambda origin, count: None, self.failures.append)
        self.flow.client_conn.tls = False

    def take(self, body: bytes, writer: object = None) -> bool:
        watchdog = SimpleNamespace(timeout=self.patience)
        transports = {self.flow.client_conn: ConnectionIO(writer=writer or self.writer)}  # type: ignore[arg-type]
        handlers: Any = {self.flow.client_conn.id: SimpleNamespace(transports=transports, timeout_watchdog=watchdog)}
        answer = Answer(200, {"X": "y"}, Result.HIT, source=BytesSource(body), length=len(body))
        return self.wires.take(self.flow, answer, handlers)

    async def deliver(self) -> None:
        delivered = self.wires.deliver(self.flow, self.pump)
        assert delivered is not None
        await delivered


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: accepted.put_nowait(writer), "127.0.0.1", 0)
    reader, leaver = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer = await accepted.get()
    yield Line(writer, reader)
    for each in (leaver, writer):
        each.close()
    server.close()


async def test_head_and_body_are_sent_and_stay_in_no_flow(line: Line) -> None:
    assert line.take(b"body")
    assert isinstance(line.flow.response, Delivered)
    assert line.flow.response.raw_content is None
    await line.deliver()
    expected = b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 4\r\n\r\nbody"
    assert await line.reader.readexactly(len(expected)) == expected
    assert line.wires.deliver(line.flow, line.pump) is None


async def test_client_of_whose_tls_nothing_is_known_is_mitmproxys(line: Line) -> None:
    line.flow.client_conn.tls = True
    assert not line.take(b"body")
    assert line.flow.response is None


async def test_client_that_speaks_http_2_is_mitmproxys(line: Line) -> None:
    line.flow.request.http_version = "HTTP/2.0"
    assert not line.take(b"body")


async def test_client_without_a_socket_of_its_own_is_mitmproxys(line: Line) -> None:
    assert not line.take(b"body", writer=SimpleNamespace())
    assert not line.wires.take(line.flow, Answer(200, {}, Result.HIT, source=BytesSource(b"body"), length=4), {})


@pytest.mark.parametrize("depth", [1, 2])
async def test_one_tls_connection_is_known_and_one_in_another_is_not(line: Line, depth: int) -> None:
    client = line.flow.client_conn
    at = context.Context(client, Options())
    at.layers = [NextLayer(at)]
    for _ in range(depth):
        ClientTLSLayer(at)  # which takes its place itself
    start = tls.TlsData(client, at)
    start.ssl_conn = Connection(SSL.Context(SSL.TLS_SERVER_METHOD))
    line.wires.secured(start)
    client.tls = True
    assert line.take(b"body") is (depth == 1)


# -- what ends it ----------------------------------------------------------------------------------------------------


async def test_flow_that_is_killed_ends_with_its_connection(line: Line) -> None:
    assert line.take(b"body")
    line.flow.kill()
    await line.deliver()
    assert (await line.reader.read()).endswith(b"\r\n\r\n")


async def test_client_that_stops_reading_is_given_up(line: Line) -> None:
    line.patience = 0.2
    line.writer.transport.set_write_buffer_limits(0)
    line.writer.write(bytes(20 << 20))
    assert line.take(b"body")
    await asyncio.wait_for(line.deliver(), PATIENCE)
    assert line.writer.is_closing()
    assert line.failures == []


async def test_client_that_left_before_its_answer_gives_the_source_back(line: Line) -> None:
    source = BytesSource(b"body")
    assert line.take(b"")
    line.wires._bodies[line.flow.id] = source, line.wires._bodies[line.flow.id][1]
    await line.wires.drop(line.flow)
    assert source.finished
    assert line.wires._bodies == {}

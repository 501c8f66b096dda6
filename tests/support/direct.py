"""A reception by itself, with the socket and the answers in the test's hand."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hubcache.clients.draining import ClientGroup
from hubcache.clients.limits import ClientLimits
from hubcache.direct.connection import DirectConnection, DirectDependencies
from hubcache.mitm.interception import Interception
from hubcache.oci.errors import HubcacheError
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.serve.messages import Answer, Forward, Request, Result
from hubcache.transfer.active_bodies import ActiveBodies
from hubcache.transfer.body_delivery import BodyDelivery
from hubcache.transfer.sources import BytesSource
from mitmproxy.proxy.mode_specs import ProxyMode

from support.users import until


class Transport(asyncio.Transport):
    """A socket's, with the socket in the test's hand."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 5000)})
        self.sent = b""
        self.reads = True
        self.is_aborted = False
        self._is_closing = False
        self._protocol: asyncio.BaseProtocol | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self._is_closing = self.is_aborted = True

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol


@dataclass
class Visit:
    """A client at a mirror door whose requests are answered by `answer`."""

    answer: Callable[[Request], Awaitable[Answer | Forward | None]]
    patience: float = 60.0
    clients: ClientLimits = field(default_factory=ClientLimits)
    transport: Transport = field(default_factory=Transport)
    lines: list[str] = field(default_factory=list)
    failures: list[HubcacheError] = field(default_factory=list)
    taken_over: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    def __post_init__(self) -> None:
        unused: Any = SimpleNamespace(permitted=True)
        delivery = BodyDelivery(ActiveBodies(), lambda *_: None, self.failures.append)
        decider: Any = SimpleNamespace(body_delivery=delivery, answer=self.answer)
        table = Interception([Registry.parse(HUB_HOST)])
        server: Any = SimpleNamespace(
            mode=ProxyMode.parse(f"reverse:https://{HUB_HOST}@5000"), handle_stream=self._handle_stream
        )
        desk = DirectDependencies(
            table, unused, unused, decider, self.patience, self.lines.append, self.clients, ClientGroup()
        )
        self.reception = DirectConnection(desk, server, ("127.0.0.1", 50_000))
        self.transport.set_protocol(self.reception)
        self.reception.connection_made(self.transport)

    async def _handle_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken_over.append((reader, writer))

    async def taken(self) -> bytes:
        """All that mitmproxy reads."""
        await until(lambda: self.taken_over)
        return await asyncio.wait_for(self.taken_over[0][0].read(), 10)

    def say(self, data: bytes) -> None:
        self.reception.data_received(data)

    def leave(self) -> None:
        """As when the connection is reset."""
        self.transport.close()
        protocol: Any = self.transport.get_protocol()
        protocol.connection_lost(ConnectionResetError())


class Question:
    """An answer that is thought about until the test has one."""

    def __init__(self) -> None:
        self._outcome: asyncio.Future[Answer | Forward | None] = asyncio.Future()
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> Answer | Forward | None:
        self.requests.append(request)
        return await self._outcome

    def settle(self, outcome: Answer | Forward | None) -> None:
        self._outcome.set_result(outcome)


class Endless(BytesSource):
    """A body without an end."""

    def __init__(self) -> None:
        super().__init__(b"x")
        self.is_closed = False

    async def read(self, most: int = 1) -> bytes:
        await asyncio.sleep(0)
        return b"x"

    async def close(self) -> None:
        self.is_closed = True


def small(body: bytes = b"body") -> Answer:
    return Answer(200, {}, Result.HIT, body, length=len(body))


def endless() -> tuple[Answer, Endless]:
    source = Endless()
    return Answer(200, {}, Result.HIT, source=source, length=1 << 40), source


async def always(_: Request) -> Answer:
    return small()

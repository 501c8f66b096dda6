"""A direct connection without a socket, for which the test supplies the received bytes and the answers."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hubcache.clients.draining import ClientGroup
from hubcache.clients.limits import ClientLimits
from hubcache.direct.connection import DirectConnection
from hubcache.direct.dependencies import DirectDependencies
from hubcache.mitm.interception import Interception
from hubcache.oci.errors import HubcacheError
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.operate.served_request import ServedRequest
from hubcache.serve.messages import Answer, Forward, Request, Result
from hubcache.transfer.active_bodies import ActiveBodies
from hubcache.transfer.body_delivery import BodyDelivery
from hubcache.transfer.sources import BytesSource
from mitmproxy.proxy.mode_specs import ProxyMode

from support.http_client import head
from support.users import until

CLIENT = ("127.0.0.1", 50_000)
REQUEST = head("GET", "/v2/library/app/manifests/1", {"Host": HUB_HOST})


class Transport(asyncio.Transport):
    """A transport that keeps the bytes that are written to it."""

    def __init__(self) -> None:
        super().__init__({"peername": CLIENT, "sockname": ("127.0.0.1", 5000)})
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


def dependencies(**changes: Any) -> DirectDependencies:
    """Return the shared dependencies of direct connections to Docker Hub, with these parts; other parts are
    stand-ins."""
    unused: Any = SimpleNamespace()
    parts: dict[str, Any] = {
        "interception": Interception([Registry.parse(HUB_HOST)]),
        "connects": unused,
        "tls_contexts": SimpleNamespace(serves_mirror=False),
        "responder": unused,
        "idle_seconds": 60.0,
        "log_answer": None,
        "limits": ClientLimits(),
        "group": ClientGroup(),
    }
    return DirectDependencies(**parts | changes)


@dataclass
class DirectClient:
    """A client of the mirror whose requests are answered by `answer`."""

    answer: Callable[[Request], Awaitable[Answer | Forward | None]]
    idle_seconds: float = 60.0
    limits: ClientLimits = field(default_factory=ClientLimits)
    transport: Transport = field(default_factory=Transport)
    log_lines: list[str] = field(default_factory=list)
    failures: list[HubcacheError] = field(default_factory=list)
    served: list[ServedRequest] = field(default_factory=list)
    handed_over: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._disconnected = asyncio.Event()
        delivery = BodyDelivery(ActiveBodies(), lambda *_: None, self.failures.append)
        server: Any = SimpleNamespace(
            mode=ProxyMode.parse(f"reverse:https://{HUB_HOST}@5000"), handle_stream=self._handle_stream
        )
        parts = dependencies(
            responder=SimpleNamespace(body_delivery=delivery, answer=self.answer, request_ended=self.served.append),
            idle_seconds=self.idle_seconds,
            log_answer=self.log_lines.append,
            limits=self.limits,
        )
        self.connection = DirectConnection(parts, server, CLIENT)
        self.transport.set_protocol(self.connection)
        self.connection.connection_made(self.transport)

    async def _handle_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handed_over.append((reader, writer))
        await self._disconnected.wait()

    async def read_by_mitmproxy(self) -> bytes:
        """Return all that mitmproxy reads after the handover."""
        await until(lambda: self.handed_over)
        return await asyncio.wait_for(self.handed_over[0][0].read(), 10)

    def send(self, data: bytes) -> None:
        """Let the connection receive bytes."""
        self.connection.data_received(data)

    def disconnect(self) -> None:
        """End the connection as a reset by the client does."""
        self._disconnected.set()
        self.transport.close()
        protocol: Any = self.transport.get_protocol()
        protocol.connection_lost(ConnectionResetError())


class PendingAnswer:
    """An answer that requests wait for until the test sets it."""

    def __init__(self) -> None:
        self._outcome: asyncio.Future[Answer | Forward | None] = asyncio.Future()
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> Answer | Forward | None:
        self.requests.append(request)
        return await self._outcome

    def set(self, outcome: Answer | Forward | None) -> None:
        self._outcome.set_result(outcome)


class EndlessSource(BytesSource):
    """A body without an end."""

    def __init__(self) -> None:
        super().__init__(b"x")
        self.is_closed = False

    async def read(self, most: int = 1) -> bytes:
        await asyncio.sleep(0)
        return b"x"

    async def close(self) -> None:
        self.is_closed = True


def small_answer(body: bytes = b"body") -> Answer:
    """Return an answer with its body in memory."""
    return Answer(200, {}, Result.HIT, body, length=len(body))


def endless_answer() -> tuple[Answer, EndlessSource]:
    """Return an answer whose body never ends, and its source."""
    source = EndlessSource()
    return Answer(200, {}, Result.HIT, source=source, length=1 << 40), source


async def answer_at_once(_: Request) -> Answer:
    """Answer every request with a small body."""
    return small_answer()

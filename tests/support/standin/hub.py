"""The stand-in Hub: three listeners in a thread of their own."""

import asyncio
import contextlib
import functools
import random
import secrets
import socket
import ssl
import tempfile
import threading
import time
import weakref
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from aiohttp import web

from . import tls
from .content import Image, Manifest, Memory, Synthetic, subject_of
from .faults import Faults
from .registry import Cdn, Registry, TokenService, classify
from .remote import Remote
from .reply import Reply, replaced, send
from .requestlog import Record
from .tokens import Accounts
from .uploads import Uploads

T = TypeVar("T")
LISTENERS = ("registry", "token", "cdn")
PORTS = range(20_000, 32_000)
"""Ports below the ephemeral range, so that the port of a stopped listener stays free."""

RUNNING: "weakref.WeakSet[Hub]" = weakref.WeakSet()
"""The Hubs of this process."""


class Hub:
    """Docker Hub on loopback, a context manager. All public attributes may be used from any thread at any time.

    With `backend_url`, content is read from that registry and pushes are forwarded to it; else content is in memory.
    With `tls` the listeners use TLS, with a certificate of the CA in `ca_file` for localhost, 127.0.0.1 and `names`.
    """

    def __init__(self, *, tls: bool = False, names: Sequence[str] = (), backend_url: str | None = None) -> None:
        self.memory = Memory()
        self.backend: Memory | Remote = Remote(backend_url) if backend_url else self.memory
        self.accounts = Accounts()
        self.faults = Faults()
        self.log: list[Record] = []
        self.violations: list[str] = []
        """Requests that no client may send, such as one with credentials to the CDN."""
        self.service = "registry.docker.io"
        self.realm = ""
        """The realm in challenges; tests may set another."""
        self.auth = True
        """Whether the registry requires tokens."""
        self.redirects = True
        """Whether the registry redirects to the CDN for blobs; else it serves them itself."""
        self.referrers = False
        """Whether the registry has the referrers API; else it responds with 404."""
        self.referrers_page: int | None = None
        """Referrers per page; None: all on one page."""
        self.ratelimit: int | None = None
        self.ratelimit_window = 21600
        self.remaining = 0
        self.single_use = False
        """Whether connections are closed at their second request, as by load balancers that forget them."""
        self._used = weakref.WeakSet[asyncio.BaseTransport]()
        self.rate: int | None = None
        """Bytes per second of every response, unless a fault has another rate."""
        self.cdn_host = "127.0.0.1"
        self.ports: dict[str, int] = {}
        self.ca_file: Path | None = None
        self.cdn = Cdn(self, secrets.token_bytes(32))
        self._registry, self._token = Registry(self), TokenService(self)
        self._uploads = Uploads(self.memory)
        self._tls, self._names = tls, names
        self._context: ssl.SSLContext | None = None
        self._loop = asyncio.new_event_loop()
        self._runners: dict[str, web.AppRunner] = {}
        self._holders: dict[str, list[socket.socket]] = {}
        """By listener: the sockets that hold its port while it is stopped."""
        self._closing = contextlib.ExitStack()

    # -- start and stop

    def __enter__(self) -> Self:
        if self._tls:
            directory = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="standin-")))
            self.ca_file, self._context = tls.make(directory, ["localhost", "127.0.0.1", *self._names])
        thread = threading.Thread(target=self._loop.run_forever, name="stand-in hub", daemon=True)
        thread.start()
        RUNNING.add(self)
        for name in LISTENERS:
            self.start(name)
        self.realm = f"{self.url('token')}/token"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        RUNNING.discard(self)
        self.faults.clear()
        for name in LISTENERS:
            self.stop(name)
            self._release_port(name)
        if isinstance(self.backend, Remote):
            self._run(self.backend.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        while self._loop.is_running():
            time.sleep(0.001)
        self._loop.close()
        self._closing.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def start(self, *names: str) -> None:
        """Start listeners (default: all that are stopped), each on the port that it had before."""
        for name in names or LISTENERS:
            self._release_port(name)
            if name not in self._runners:
                self._run(self._start(name))

    def stop(self, *names: str) -> None:
        """Stop listeners and close their connections (default: all); new connections are refused.

        The port stays taken by a socket that does not listen, or a stand-in of another test could get it.
        """
        for name in names or LISTENERS:
            self._release_port(name)
            if runner := self._runners.pop(name, None):
                self._run(_end(runner))
            if name in self.ports:
                self._holders[name] = [self._bound(name)]

    def _bound(self, name: str) -> socket.socket:
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", self.ports[name]))
        return holder

    def blackhole(self, *names: str) -> None:
        """Make connecting to listeners time out, unlike after `stop`; `start` ends this."""
        for name in names or LISTENERS:
            self.stop(name)
            (hole,) = self._holders[name]
            hole.listen(0)
            for _ in range(4):  # with a full backlog the kernel drops further SYNs
                plug = socket.socket()
                plug.setblocking(False)
                plug.connect_ex(hole.getsockname())
                self._holders[name].append(plug)

    @property
    def is_silent(self) -> bool:
        """Whether a listener or a fault lets clients wait for their time-outs."""
        return any(len(holders) > 1 for holders in self._holders.values()) or self.faults.are_silent

    def _release_port(self, name: str) -> None:
        for holder in self._holders.pop(name, []):
            holder.close()

    async def _start(self, name: str) -> None:
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", functools.partial(self._handle, name))
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        for port in [self.ports[name]] if name in self.ports else random.sample(PORTS, 50):
            try:
                await web.TCPSite(runner, "127.0.0.1", port, ssl_context=self._context).start()
            except OSError:
                if name in self.ports:
                    raise
                continue
            self.ports[name] = port
            self._runners[name] = runner
            return
        raise OSError("no free port for the stand-in Hub")

    def url(self, listener: str = "registry") -> str:
        """Return the URL of a listener, without a slash at the end."""
        host = self.cdn_host if listener == "cdn" else "localhost"
        return f"{'https' if self._tls else 'http'}://{host}:{self.ports[listener]}"

    # -- requests

    async def _handle(self, listener: str, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if self.single_use and transport is not None and transport in self._used:
            transport.close()
            return web.Response()
        if transport is not None:
            self._used.add(transport)
        kind, repo, name = classify(listener, request.path)
        record = Record(listener, request.method, request.raw_path, repo, kind, dict(request.headers))
        record.remote = request.remote or ""
        self.log.append(record)
        try:
            fault = self.faults.take(kind, request.method, request.raw_path)
            reply = replaced(fault, str(request.url)) if fault else None
            if reply is not None and reply.status == 401 and listener == "registry":
                challenge = self._registry.challenge(f"repository:{repo}:pull" if repo else "")
                headers = {"WWW-Authenticate": challenge.headers["WWW-Authenticate"], **reply.headers}
                reply = Reply(401, headers, reply.body) if reply.body else challenge
            if reply is None:
                reply = await self._answer(listener, request, record, name)
            if listener == "registry":
                reply.headers = {"Docker-Distribution-Api-Version": "registry/2.0", **reply.headers}
            return await send(request, reply, record, fault, self.rate)
        finally:
            record.finished = time.monotonic()

    async def _answer(self, listener: str, request: web.Request, record: Record, name: str) -> Reply:
        if listener == "cdn":
            return await self.cdn.answer(request, record, name)
        if listener == "token":
            return await self._token.answer(request, record)
        return await self._registry.answer(request, record, name)

    async def write(self, request: web.Request, repo: str, kind: str, name: str) -> Reply:
        """Respond to a push."""
        if isinstance(self.backend, Remote):
            return await self.backend.write(request)
        reply = await self._uploads.write(request, repo, kind, name)
        if self.referrers and kind == "manifest" and (subject := subject_of(await request.read())):
            reply.headers = {"OCI-Subject": subject, **reply.headers}
        return reply

    # -- log

    def requests(self, **wanted: str | int | None) -> list[Record]:
        """Return the records with these fields (listener, method, path, repo, kind, status, token, user); text may be
        a glob."""
        return [record for record in list(self.log) if record.matches(**wanted)]

    def count(self, **wanted: str | int | None) -> int:
        """Return the number of requests that match; without arguments, of all."""
        return len(self.requests(**wanted))

    def sent(self, **wanted: str | int | None) -> int:
        """Return the bytes of bodies that were sent for the requests that match."""
        return sum(record.sent for record in self.requests(**wanted))

    def reset_log(self) -> None:
        self.log.clear()

    # -- content and accounts

    def blob(self, repo: str, data: bytes | Synthetic) -> str:
        """Put a blob; returns its digest."""
        return self.memory.put_blob(repo, data)

    def manifest(self, repo: str, ref: str | None, body: bytes, media_type: str) -> str:
        """Put any bytes as a manifest with a tag, or with a digest, which may be wrong; returns the digest."""
        if ref is not None and ":" in ref:
            self.memory.repository(repo).manifests[ref] = Manifest(body, media_type)
            return ref
        return self.memory.put_manifest(repo, ref, body, media_type)

    def image(
        self, repo: str, tag: str | None, layers: Sequence[bytes | Synthetic] = (b"layer",), **more: Any
    ) -> Image:
        """Put an image; `Memory.image` describes the options: platform, annotations, docker, subject and others."""
        return self.memory.image(repo, tag, layers, **more)

    def index(
        self, repo: str, tag: str | None, images: Mapping[str, Image], *, docker: bool = False, attested: bool = False
    ) -> Image:
        """Put an image index (or Docker manifest list) of images that are in `repo`; see `Memory.index`."""
        return self.memory.index(repo, tag, images, docker=docker, attested=attested)

    def user(self, name: str, password: str) -> None:
        """Add an account. It may push to its own namespace `name/…` and to private repositories with it as a user."""
        self.accounts.passwords[name] = password

    def private(self, repo: str, users: Mapping[str, str] | Iterable[str] = ()) -> None:
        """Make `repo` private to `users`: names of accounts, or names and passwords of new ones."""
        for name, password in users.items() if isinstance(users, Mapping) else ():
            self.user(name, password)
        self.accounts.private[repo] = set(users)

    def public(self, repo: str) -> None:
        """Make `repo` public again."""
        self.accounts.private.pop(repo, None)

    def limit(self, remaining: int | None, limit: int = 100, window: int = 21600) -> None:
        """Set the rate limit, with this many manifest GETs remaining; None removes it."""
        self.ratelimit = None if remaining is None else limit
        self.remaining, self.ratelimit_window = remaining or 0, window


async def _end(runner: web.AppRunner) -> None:
    """Stop a listener, and close connections that were accepted at the last moment: they are made some iterations of
    the event loop later, and nothing would close them."""
    server = runner.server
    await runner.cleanup()
    for _ in range(10):
        await asyncio.sleep(0)
    if server is not None:
        await server.shutdown(0.1)

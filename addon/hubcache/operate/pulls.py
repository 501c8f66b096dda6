"""Groups the requests of a client for a repository into pulls, and logs a line when a pull ends."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable

from ..serve.messages import Request
from .open_pull import OpenPull, Part, PullKey, part
from .pull import Pull
from .running_request import names_in
from .served_request import ServedRequest

logger = logging.getLogger("hubcache")

MAX_RECENT = 200
"""Number of pulls that are kept after they ended."""

MAX_RUNNING = 50
"""Number of pulls that `Pulls.running` returns: the summary of a long one takes a tenth of a millisecond."""

MAX_OPEN = 1000
"""Number of pulls that are open at the same time; beyond it the oldest is ended early."""

QUIET_SECONDS = 5.0
"""Seconds without a request after which a pull has ended, if no request is being answered."""

RETRY_SECONDS = 15.0
"""The same for a pull some of whose content was not received: clients wait before they try again (docker 5 seconds,
then 10)."""

MAX_SECONDS = 600.0
"""Age of a pull from which on a request for a tag begins another one even while requests are being answered: clients
behind one address may pull from the same repository without a pause."""

STUCK_SECONDS = 6 * 3600.0
"""Seconds without a request after which a pull ends though a request is being answered."""

_TICK_SECONDS = 1.0

TOKEN_SECONDS = 5.0
"""Seconds before a pull in which a client's request for a token belongs to it."""

MIN_TOKEN_SECONDS = 0.01
"""Seconds from which on such a request counts: those that the cache answers itself take less."""

CHECK = "check"
"""The result of requests by which a client only found out whether a tag has moved: counted, but no pull."""


class Pulls:
    """The pulls of all clients. `count` is called with the result of each when it ends.

    A pull begins with a request for a manifest or a blob, and ends when the client requests nothing more for
    `QUIET_SECONDS`, or requests a tag after blobs. Clients behind one address cannot be told apart.
    """

    def __init__(self, count: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.recent: deque[Pull] = deque(maxlen=MAX_RECENT)
        """The pulls that ended last, the newest last."""
        self.on_ended: Callable[[Pull], None] = lambda _: None
        """Called with each pull when it ends."""
        self._count = count
        self._clock = clock
        self._open: dict[PullKey, OpenPull] = {}
        self._tokens: dict[str, tuple[float, ServedRequest]] = {}
        """When each client's last request for a token ended, and the request."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to end pulls whose clients request nothing more."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End all pulls."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for key in list(self._open):
            self._end(key)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.end_quiet()

    @property
    def running(self) -> list[Pull]:
        """The last `MAX_RUNNING` of the pulls that have not ended, the oldest first."""
        found = [each for each in self._open.values() if each.is_pull]
        return [each.summary() for each in found[-MAX_RUNNING:]]

    def begin(self, request: Request) -> None:
        """Note a request that begins; `add` receives it when it has ended."""
        names = names_in(request.path)
        requested = part(request.method, names.kind, names.reference)
        if requested is not Part.NONE:
            key = (request.client, request.listener.value, request.registry.host, names.repository)
            self._find(key, request.method, requested, names.reference).running += 1

    def add(self, request: ServedRequest) -> None:
        """Add a request that ended."""
        if request.kind == "token" and request.duration >= MIN_TOKEN_SECONDS:
            self._add_token(request)
        requested = part(request.method, request.kind, request.reference)
        key = (request.client, request.listener.value, request.registry, request.repository)
        found = self._open.get(key)
        if requested is not Part.NONE and (found is None or request.is_repeated):
            found = self._find(key, request.method, requested, request.reference)
        if found is not None:
            if found.running and requested is not Part.NONE and not request.is_repeated:
                found.running -= 1
            found.last_event = self._clock()
            found.add(request, requested)

    def _find(self, key: PullKey, method: str, requested: Part, reference: str) -> OpenPull:
        """Return the pull that a request belongs to, which may be a new one, and note what is requested."""
        now, running = self._clock(), 0
        found = self._open.get(key)
        if found is not None and requested is Part.TAG and found.may_be_followed(reference, now, MAX_SECONDS):
            running = found.running
            self._end(key)
            found = None
        if found is None:
            found = self._new(key, now)
            found.running = running
        found.last_event = now
        found.begin(method, requested, reference)
        return found

    def _new(self, key: PullKey, now: float) -> OpenPull:
        if len(self._open) >= MAX_OPEN:
            self._end(next(iter(self._open)))
        made = self._open[key] = OpenPull(key, now)
        ended, token = self._tokens.pop(key[0], (0.0, None))
        if token is not None and now - ended < TOKEN_SECONDS:
            made.add_token(token)
        return made

    def _add_token(self, request: ServedRequest) -> None:
        """Keep a request for a token for the pull that it is for, which begins next or has just begun."""
        for key, found in self._open.items():
            if key[0] == request.client and not found.has_blobs:
                found.add_token(request)
                return
        if len(self._tokens) >= MAX_OPEN:
            del self._tokens[next(iter(self._tokens))]
        self._tokens[request.client] = self._clock(), request

    def end_quiet(self) -> None:
        """End the pulls whose clients request nothing more."""
        now = self._clock()
        for key, found in list(self._open.items()):
            patience = RETRY_SECONDS if found.has_failures else QUIET_SECONDS
            if now - found.last_event >= (STUCK_SECONDS if found.running else patience):
                self._end(key)

    def _end(self, key: PullKey) -> None:
        ended = self._open.pop(key)
        pull = ended.summary()
        if ended.is_pull and pull.requests:
            self.recent.append(pull)
            self._count(pull.result)
            self.on_ended(pull)
            logger.info("hubcache: %s", pull.sentence(), extra={"fields": {"event": "pull"} | pull.fields()})
        elif ended.is_check:
            self._count(CHECK)

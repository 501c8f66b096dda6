"""Contains the requests for content whose end a worker has not reported yet."""

from collections.abc import Callable, Hashable

from ..operate.running_request import RunningRequest, names_in
from ..operate.served_request import ServedRequest
from ..serve.messages import Request


class UnendedRequests:
    """The requests of one worker. If the worker is killed, they are recorded as failed."""

    def __init__(self, record: Callable[[ServedRequest], None]) -> None:
        self._record = record
        self._running: dict[Hashable, list[RunningRequest]] = {}
        """By what a request and its record have in common; equal requests cannot be told apart."""

    def begin(self, request: Request) -> None:
        """Add a request that the worker sent to the owner."""
        names = names_in(request.path)
        if names.reference:
            key = (request.client, request.method, request.registry.host, names.repository, names.reference)
            self._running.setdefault(key, []).append(RunningRequest(request, self._record))

    def end(self, ended: ServedRequest) -> None:
        """Remove a request whose end the worker has reported."""
        if ended.is_repeated:
            return
        key = (ended.client, ended.method, ended.registry, ended.repository, ended.reference)
        running = self._running.pop(key, [])
        if running[1:]:
            self._running[key] = running[1:]

    def fail(self) -> None:
        """Record all that are left as failed: the worker has ended."""
        for each in self._running.values():
            for running in each:
                running.failed("a worker process ended")
        self._running.clear()

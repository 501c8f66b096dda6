"""The interface of objects that answer requests: the engine or, in a worker process, the client of the owner."""

from collections.abc import Callable
from typing import Protocol

from ..oci.registry import Registry
from ..transfer.body_delivery import BodyDelivery
from .messages import Answer, Change, Forward, Request


class Responder(Protocol):
    """Answers requests of clients; `body_delivery` sends bodies that come from a `Source`."""

    body_delivery: BodyDelivery

    async def answer(self, request: Request) -> Answer | Forward | None:
        """Return the answer to a request, or how to forward it; None when the request's body must be received first.

        A small stored body that every client may read is in memory, see `small_bodies`.
        """

    async def content_changed(self, registry: Registry, change: Change, subject: str | None = None) -> None:
        """Invalidate what an accepted push or delete changed; `subject` is the answer's `OCI-Subject`."""


class CountingResponder(Responder, Protocol):
    """A responder that worker processes use: it also counts what they do."""

    def count_repeats(self, request: Request, answer: Answer, count: int) -> None:
        """Count an answer that a worker process repeated `count` times."""

    def count_sent(self, source: str, count: int) -> None:
        """Count body bytes that a worker process sent; `source` is the `origin` of a `Source`."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call this when cached answers may now be invalid."""

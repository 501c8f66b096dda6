"""Bounds the number of concurrent fills, and shares it fairly: one client's many requests do not starve another."""

import asyncio
from collections import Counter, OrderedDict

MAX_FILLS = 64
"""Fills that run at the same time. Each costs a connection, a file and some read-ahead."""

_RESERVED = 16
"""Slots that are given only to requesters that hold few."""

_FEW = 4
"""As many slots as a client usually needs at the same time: docker pulls three layers in parallel."""

PREFETCH = "prefetch"
"""Requester of fills that no client waits for. It gets slots that no client wants, except the reserved ones."""


class Ticket:
    """A position in the queue, and later a slot."""

    def __init__(self) -> None:
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.requesters: set[str] = set()
        """The requesters in whose queues the ticket is; it takes the first turn of any of them."""
        self.holder: str | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether it has no slot yet."""
        return not self.granted.done()


class FillSlots:
    """The slots, and a queue for each requester (a client's address, or `PREFETCH`)."""

    def __init__(self, most: int = MAX_FILLS) -> None:
        self._most = most
        self._held: Counter[str] = Counter()
        self._queues: OrderedDict[str, dict[Ticket, None]] = OrderedDict()
        """Waiting tickets by requester; the requester whose turn is next comes first."""

    @property
    def has_waiting_client(self) -> bool:
        """Whether a client waits for a slot."""
        return any(requester != PREFETCH for requester in self._queues)

    def has_free(self, requester: str) -> bool:
        """Whether a ticket for this requester would have a slot at once."""
        free = self._most - self._held.total()
        return free > _RESERVED or (free > 0 and requester != PREFETCH and self._held[requester] < _FEW)

    def request(self, requester: str) -> Ticket:
        """Return a ticket; it has a slot already when one is free."""
        ticket = Ticket()
        self.join(ticket, requester)
        return ticket

    def join(self, ticket: Ticket, requester: str) -> None:
        """Add another requester to a waiting ticket, which then takes that requester's turns, too."""
        if ticket.is_waiting and requester not in ticket.requesters:
            ticket.requesters.add(requester)
            self._queues.setdefault(requester, {})[ticket] = None
            self._grant()

    def release(self, ticket: Ticket) -> None:
        """Free the ticket's slot, or remove a waiting ticket from the queues and cancel the task that waits for it."""
        self._leave_queues(ticket)
        ticket.granted.cancel()
        if ticket.holder is not None:
            self._held[ticket.holder] -= 1
            if not self._held[ticket.holder]:
                del self._held[ticket.holder]
            ticket.holder = None
        self._grant()

    def _grant(self) -> None:
        while (requester := self._next()) is not None:
            ticket = next(iter(self._queues[requester]))
            self._queues.move_to_end(requester)
            self._leave_queues(ticket)
            self._held[requester] += 1
            ticket.holder = requester
            ticket.granted.set_result(None)

    def _next(self) -> str | None:
        """Return the requester that gets the next slot; None when no slot is free for those that wait."""
        free = self._most - self._held.total()
        if free <= 0:
            return None
        for requester in self._queues:
            if requester != PREFETCH and (free > _RESERVED or self._held[requester] < _FEW):
                return requester
        return PREFETCH if PREFETCH in self._queues and free > _RESERVED else None

    def _leave_queues(self, ticket: Ticket) -> None:
        for requester in ticket.requesters:
            queue = self._queues[requester]
            del queue[ticket]
            if not queue:
                del self._queues[requester]
        ticket.requesters.clear()

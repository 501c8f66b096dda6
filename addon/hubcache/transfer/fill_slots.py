"""Who may fetch: a bounded number at a time, and in turn by who asks, so that nobody's flood starves another."""

import asyncio
from collections import Counter, OrderedDict

MOST = 64
"""Slots: fills that are fetched at the same time. Each costs a connection, a file and some read-ahead."""

_SPARE = 16
"""The last slots, which are only for who has few."""

_FEW = 4
"""As many as a client pulls at the same time: docker three layers."""

PREFETCH = "prefetch"
"""The asker of what no client waits for: it gets the slots that no client wants, except the spare ones."""


class Ticket:
    """A turn, and later a slot."""

    def __init__(self) -> None:
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.askers: set[str] = set()
        """In whose queues it is; it takes the first turn that comes."""
        self.holder: str | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether it has no slot yet."""
        return not self.granted.done()


class FillSlots:
    """The slots, and the queue of each asker (a client's address)."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._held: Counter[str] = Counter()
        self._queues: OrderedDict[str, dict[Ticket, None]] = OrderedDict()
        """Whose turn is next comes first."""

    @property
    def are_short(self) -> bool:
        """Whether a client waits for one."""
        return any(asker != PREFETCH for asker in self._queues)

    def ask(self, asker: str) -> Ticket:
        """A ticket that has a slot already where one is free."""
        ticket = Ticket()
        self.join(ticket, asker)
        return ticket

    def join(self, ticket: Ticket, asker: str) -> None:
        """Somebody else wants the same: a waiting ticket takes that one's turns, too."""
        if ticket.is_waiting and asker not in ticket.askers:
            ticket.askers.add(asker)
            self._queues.setdefault(asker, {})[ticket] = None
            self._serve()

    def give_back(self, ticket: Ticket) -> None:
        """The slot is not needed any more, or the turn given up: who waits for it is cancelled."""
        self._leave_queues(ticket)
        ticket.granted.cancel()
        if ticket.holder is not None:
            self._held[ticket.holder] -= 1
            if not self._held[ticket.holder]:
                del self._held[ticket.holder]
            ticket.holder = None
        self._serve()

    def _serve(self) -> None:
        while (asker := self._next()) is not None:
            ticket = next(iter(self._queues[asker]))
            self._queues.move_to_end(asker)
            self._leave_queues(ticket)
            self._held[asker] += 1
            ticket.holder = asker
            ticket.granted.set_result(None)

    def _next(self) -> str | None:
        """Who gets the next slot; None when there is none for any who ask."""
        free = self._most - self._held.total()
        if free <= 0:
            return None
        for asker in self._queues:
            if asker != PREFETCH and (free > _SPARE or self._held[asker] < _FEW):
                return asker
        return PREFETCH if PREFETCH in self._queues and free > _SPARE else None

    def _leave_queues(self, ticket: Ticket) -> None:
        for asker in ticket.askers:
            queue = self._queues[asker]
            del queue[ticket]
            if not queue:
                del self._queues[asker]
        ticket.askers.clear()

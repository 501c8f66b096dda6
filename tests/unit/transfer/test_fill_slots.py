"""Slots: a bounded number at a time, in turn by who asks, and nobody's flood takes all."""

from hubcache.transfer.fill_slots import PREFETCH, FillSlots, Ticket


def held(*tickets: Ticket) -> list[bool]:
    return [not ticket.is_waiting for ticket in tickets]


async def test_slots_are_bounded_and_given_on() -> None:
    slots = FillSlots(20)
    tickets = [slots.request(f"client {number}") for number in range(25)]
    assert held(*tickets) == [True] * 20 + [False] * 5
    slots.release(tickets[3])
    slots.release(tickets[7])
    assert held(*tickets) == [True] * 22 + [False] * 3


async def test_who_has_waited_longest_is_served_first_and_then_each_in_turn() -> None:
    slots = FillSlots(64)
    first = [slots.request("flood") for _ in range(100)]
    assert sum(held(*first)) == 48
    others = [slots.request(f"other {number % 4}") for number in range(32)]
    assert sum(held(*others)) == 16, "the spare ones"
    more = [slots.request("one more") for _ in range(2)]
    order = []
    waiting = [*first[48:], *others[16:], *more]
    for _ in range(12):
        slots.release(next(ticket for ticket in first if not ticket.is_waiting and ticket.holder))
        for ticket in waiting:
            if ticket.holder and ticket not in order:
                order.append(ticket)
    assert held(*more) == [True, True], "not behind the flood"
    assert sum(ticket in first for ticket in order) == 0, "it has more than its share"


async def test_few_are_had_at_once_while_another_has_flooded() -> None:
    slots = FillSlots()
    flood = [slots.request("flood") for _ in range(1000)]
    layers = [slots.request("docker") for _ in range(5)]
    assert held(*layers) == [True] * 4 + [False]
    assert sum(held(*flood)) == 48
    for ticket in flood[:17]:
        slots.release(ticket)
    assert held(*layers) == [True] * 5


async def test_prefetch_gets_what_is_left() -> None:
    slots = FillSlots(18)
    before = slots.request(PREFETCH), slots.request(PREFETCH), slots.request(PREFETCH)
    assert held(*before) == [True, True, False]
    client = slots.request("client")
    assert held(client) == [True]
    slots.release(client)
    assert held(*before) == [True, True, False], "the spare ones are for clients"
    slots.release(before[0])
    assert held(*before[1:]) == [True, True]


async def test_what_another_asks_for_too_takes_that_ones_turn() -> None:
    slots = FillSlots()
    for _ in range(48):
        slots.request("flood")
    waiting, behind = slots.request("flood"), slots.request("flood")
    slots.join(behind, "docker")
    assert held(waiting, behind) == [False, True]
    assert behind.holder == "docker"
    slots.join(behind, "late")
    assert slots._queues.keys() == {"flood"}


async def test_turn_that_is_given_up_is_nobodys() -> None:
    slots = FillSlots(17)
    first = slots.request("a")
    waiting = [slots.request("a") for _ in range(5)]
    assert held(first, *waiting) == [True] * 4 + [False] * 2
    slots.join(waiting[3], "b")
    slots.release(waiting[4])
    assert waiting[4].granted.cancelled()
    for ticket in (first, *waiting):
        slots.release(ticket)
        slots.release(ticket)
    assert not slots._queues
    assert not slots._held
    assert held(*(slots.request(f"client {number}") for number in range(17))) == [True] * 17

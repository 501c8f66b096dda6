"""Slots: a bounded number, granted in turn by requester; one requester cannot take all of them."""

from hubcache.transfer.fill_slots import PREFETCH, FillSlots, Ticket


def held(*tickets: Ticket) -> list[bool]:
    return [not ticket.is_waiting for ticket in tickets]


async def test_slots_are_bounded_and_granted_again_after_release() -> None:
    slots = FillSlots(20)
    tickets = [slots.request(f"client {number}") for number in range(25)]
    assert held(*tickets) == [True] * 20 + [False] * 5
    slots.release(tickets[3])
    slots.release(tickets[7])
    assert held(*tickets) == [True] * 22 + [False] * 3


async def test_requesters_are_granted_slots_in_turn() -> None:
    slots = FillSlots(64)
    first = [slots.request("flood") for _ in range(100)]
    assert sum(held(*first)) == 48
    others = [slots.request(f"other {number % 4}") for number in range(32)]
    assert sum(held(*others)) == 16, "the reserved ones"
    more = [slots.request("one more") for _ in range(2)]
    order = []
    waiting = [*first[48:], *others[16:], *more]
    for _ in range(12):
        slots.release(next(ticket for ticket in first if not ticket.is_waiting and ticket.holder))
        for ticket in waiting:
            if ticket.holder and ticket not in order:
                order.append(ticket)
    assert held(*more) == [True, True], "not after the flood"
    assert sum(ticket in first for ticket in order) == 0, "the flood holds more than its share"


async def test_requester_with_few_slots_gets_one_at_once_during_the_flood_of_another() -> None:
    slots = FillSlots()
    flood = [slots.request("flood") for _ in range(1000)]
    layers = [slots.request("docker") for _ in range(5)]
    assert held(*layers) == [True] * 4 + [False]
    assert sum(held(*flood)) == 48
    for ticket in flood[:17]:
        slots.release(ticket)
    assert held(*layers) == [True] * 5


async def test_prefetch_gets_slots_that_no_client_wants() -> None:
    slots = FillSlots(18)
    before = slots.request(PREFETCH), slots.request(PREFETCH), slots.request(PREFETCH)
    assert held(*before) == [True, True, False]
    client = slots.request("client")
    assert held(client) == [True]
    slots.release(client)
    assert held(*before) == [True, True, False], "the reserved ones are for clients"
    slots.release(before[0])
    assert held(*before[1:]) == [True, True]


async def test_ticket_of_two_requesters_takes_the_first_turn_of_either() -> None:
    slots = FillSlots()
    for _ in range(48):
        slots.request("flood")
    waiting, behind = slots.request("flood"), slots.request("flood")
    slots.join(behind, "docker")
    assert held(waiting, behind) == [False, True]
    assert behind.holder == "docker"
    slots.join(behind, "late")
    assert slots._queues.keys() == {"flood"}


async def test_released_waiting_ticket_is_cancelled() -> None:
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


async def test_free_slot_is_reported_as_it_would_be_granted() -> None:
    slots = FillSlots(20)
    granted = {True: 0, False: 0}
    for requester in [PREFETCH, "a", "b"] * 8 + ["c"] * 5 + ["d"] * 5 + ["e"] * 5:
        has_free = slots.has_free(requester)
        assert slots.request(requester).is_waiting != has_free
        granted[has_free] += 1
    assert granted[True] == 20
    assert granted[False] == 19

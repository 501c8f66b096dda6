"""Which clients may connect, and which connections are closed when there are too many."""

import heapq
from collections import deque
from ipaddress import ip_network

import pytest
from hubcache.clients.limits import ClientLimits


class Held:
    """A connection that notes whether it was closed."""

    def __init__(self, clients: ClientLimits) -> None:
        self.clients = clients
        self.is_disconnected = False

    def disconnect(self) -> None:
        self.is_disconnected = True
        self.clients.remove(self)  # as when it is lost


def entered(clients: ClientLimits, address: str = "10.0.0.1", descriptor: int = 0) -> Held:
    held = Held(clients)
    clients.accepted(descriptor)
    assert clients.add(held, address)
    return held


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *(("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("fd00::1", True), ("fd00::1%eth0", True)),
        *(("11.0.0.1", False), ("127.0.0.1", False), ("::1", False), ("::ffff:11.0.0.1", False), ("fe80::1%lo", False)),
    ],
)
def test_clients_of_named_networks_are_served_and_no_others(address: str, expected: bool) -> None:
    clients = ClientLimits()
    assert clients.admits(address)
    clients.networks = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert clients.admits(address) is expected


def test_refused_clients_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    clients = ClientLimits()
    clients.networks = (ip_network("10.0.0.0/8"),)
    for number in range(1, 100):
        assert not clients.admits(f"192.0.2.{number}")
    assert [record.getMessage() for record in caplog.records] == [
        "hubcache: clients that are not in hubcache_clients are refused, such as 192.0.2.1"
    ]


def test_oldest_idle_connection_is_closed_when_descriptors_run_short() -> None:
    clients = ClientLimits(20)
    first, second, third = (entered(clients, f"10.0.0.{number}", 15) for number in range(3))
    clients.mark_busy(first)
    latest = entered(clients, descriptor=16)
    assert [held.is_disconnected for held in (first, second, third, latest)] == [False, True, False, False]


@pytest.mark.parametrize("descriptors", [128, 256, 1024, 8192])
def test_idle_clients_never_use_up_descriptors(descriptors: int) -> None:
    """The system gives each new connection the lowest free number."""
    clients, free, held = ClientLimits(descriptors), list(range(descriptors)), deque[tuple[Held, int]]()
    for _ in range(4 * descriptors):
        number = heapq.heappop(free)
        held.append((entered(clients, f"10.0.0.{len(held) % 200}", number), number))
        while held and held[0][0].is_disconnected:
            heapq.heappush(free, held.popleft()[1])
    assert len(free) > descriptors // 32


def test_age_of_an_idle_connection_begins_with_its_last_answer() -> None:
    clients = ClientLimits()
    first, second = entered(clients), entered(clients)
    clients.mark_busy(first)
    clients.mark_idle(first)
    assert clients.close_oldest()
    assert (first.is_disconnected, second.is_disconnected) == (False, True)


def test_busy_connection_is_not_closed() -> None:
    clients = ClientLimits()
    busy = entered(clients)
    clients.mark_busy(busy)
    assert not clients.close_oldest()
    assert not busy.is_disconnected


def test_oldest_connection_of_an_address_is_closed_at_its_limit() -> None:
    clients = ClientLimits(4096)
    other = entered(clients, "10.0.0.2")
    many = [entered(clients) for _ in range(clients.max_per_address)]
    assert clients.max_per_address == 1024
    assert not any(held.is_disconnected for held in many)
    entered(clients)
    assert [held.is_disconnected for held in (other, *many[:2])] == [False, True, False]


def test_address_with_busy_connections_alone_gets_no_more() -> None:
    clients = ClientLimits(1000)
    for _ in range(clients.max_per_address):
        clients.mark_busy(entered(clients))
    assert clients.max_per_address == 256
    assert not clients.add(Held(clients), "10.0.0.1")
    assert entered(clients, "10.0.0.2")


def test_removed_connections_are_not_counted() -> None:
    clients = ClientLimits(1000)
    many = [entered(clients) for _ in range(clients.max_per_address)]
    for held in many:
        clients.mark_busy(held)
        clients.remove(held)
        clients.remove(held)
        clients.mark_idle(held)
    assert entered(clients)
    assert (len(clients._addresses), len(clients._counts), len(clients._idle), len(clients._idle_of_address)) == (
        1,
        1,
        1,
        1,
    )


def test_ipv6_network_of_a_client_counts_as_one_address() -> None:
    clients = ClientLimits(1000)
    many = [entered(clients, f"2001:db8::{number:x}") for number in range(clients.max_per_address)]
    entered(clients, "2001:db8:0:1::1")
    assert not many[0].is_disconnected
    entered(clients, "2001:db8::ffff:1")
    assert many[0].is_disconnected

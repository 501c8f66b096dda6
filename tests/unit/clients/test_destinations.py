"""Which destinations clients may reach."""

import asyncio
import socket
import threading
from typing import Any

import pytest
from hubcache.clients.destinations import Destinations, Refused, _is_own
from support.users import until

OWN_PORTS = (8080, 5000, 9090)


def resolving(monkeypatch: pytest.MonkeyPatch, **names: list[str]) -> None:
    """Have these names (with underscores for dots) resolve to these addresses; IP addresses resolve to themselves."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **more: Any) -> Any:
        addresses = names.get(host.replace(".", "_"), [host])
        return [entry for address in addresses for entry in resolve(address, port, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


async def resolved(host: str, port: int = 443, *patterns: str) -> tuple[str, int] | None:
    """Return what a destination resolves to; None where it is refused."""
    try:
        return await Destinations(patterns or ("*",), OWN_PORTS).resolve((host, port))
    except Refused:
        return None


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "127.9.9.9",
            "127.1",
            "0x7f.1",
            "2130706433",
            "0",
            "0.0.0.0",
            "0.1.2.3",
            "localhost",
            "LOCALHOST.",
        ),
        *(
            "::1",
            "[::1]",
            "::",
            "::ffff:127.0.0.1",
            "[::ffff:7f00:1]",
            "::127.0.0.1",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
        ),
        *("169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1", "fe80::1%lo", "fd00:ec2::254"),
        *("168.63.129.16", "100.100.100.200", "224.0.0.1", "ff02::1"),
    ],
)
async def test_address_of_this_machine_is_refused(host: str) -> None:
    assert await resolved(host) is None


@pytest.mark.parametrize("host", ["10.1.2.3", "192.168.1.1", "172.16.0.1", "8.8.8.8", "fd00::1", "2001:4860::1"])
async def test_other_hosts_are_reached(host: str) -> None:
    assert await resolved(host) == (host, 443)


async def test_name_is_checked_by_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(
        monkeypatch, evil_example=["127.0.0.1"], both_example=["169.254.169.254", "10.0.0.7"], good_example=["10.0.0.8"]
    )
    assert await resolved("evil.example") is None
    assert await resolved("both.example") == ("10.0.0.7", 443)
    assert await resolved("good.example") == ("10.0.0.8", 443)


@pytest.mark.parametrize("port", OWN_PORTS)
async def test_own_listeners_are_refused_at_every_own_address(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubcache.clients.destinations._is_own", lambda address: address == "10.0.0.7")
    assert await resolved("10.0.0.7", port) is None
    assert await resolved("10.0.0.7", 443) == ("10.0.0.7", 443)
    assert await resolved("10.0.0.8", port) == ("10.0.0.8", port)


@pytest.mark.parametrize(("number", "expected"), [("127.0.0.1", True), ("192.0.2.1", False), ("::1", True)])
def test_own_address_is_what_can_be_bound_to(number: str, expected: bool) -> None:
    assert _is_own(number) is expected


@pytest.mark.parametrize(
    ("patterns", "host", "port", "expected"),
    [
        (["127.0.0.1"], "127.0.0.1", 22, True),
        (["127.0.0.1:22"], "127.0.0.1", 22, True),
        (["127.0.0.1:22"], "127.0.0.1", 23, False),
        (["*", "127.0.0.1:22"], "127.0.0.1", 22, True),
        (["*", "127.0.0.1:22"], "10.0.0.1", 22, True),
        (["127.0.0.1:22"], "127.0.0.2", 22, False),
        (["127.*"], "127.0.0.1", 22, False),
        (["127.0.0.1:*"], "127.0.0.1", 22, False),
        (["[::1]:22"], "[::1]", 22, True),
        (["[::1]"], "::1", 22, True),
        (["localhost:22"], "LocalHost", 22, True),
        (["localhost:22"], "127.0.0.1", 22, False),
        (["10.0.0.1"], "10.0.0.1", 443, True),
        (["10.0.0.*"], "10.0.0.1", 443, True),
        (["10.0.0.*"], "10.0.1.1", 443, False),
        (["*:443"], "10.0.0.1", 443, True),
        (["*:443"], "10.0.0.1", 8443, False),
        (["*:443"], "127.0.0.1", 443, False),
        (["[fd00::1]"], "fd00:0::1", 443, True),
        (["10.0.0.1"], "10x0y0z1", 443, False),
    ],
)
async def test_option_restricts_destinations_and_permits_named_local_ones(
    patterns: list[str], host: str, port: int, expected: bool
) -> None:
    assert (await resolved(host, port, *patterns) is not None) is expected


@pytest.mark.parametrize("host", ["nobody.invalid", "a" * 300, "a..b"])
async def test_name_that_does_not_resolve_is_an_os_error(host: str) -> None:
    with pytest.raises(OSError, match=r"."):
        await Destinations(("*",), ()).resolve((host, 443))


async def test_slow_lookups_delay_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop's own threads write to the disk, and look up registries."""
    answered, asked = threading.Event(), []

    def getaddrinfo(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        answered.wait(10)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    tunnels = Destinations(("*",), ())
    looking = [asyncio.ensure_future(tunnels.resolve((f"{number}.example.com", 443))) for number in range(40)]
    await until(lambda: asked)
    assert await asyncio.wait_for(asyncio.to_thread(answered.is_set), 5) is False
    answered.set()
    assert all(isinstance(each, OSError) for each in await asyncio.gather(*looking, return_exceptions=True))


def refused_unresolved(host: str, port: int = 443, *patterns: str) -> bool:
    try:
        Destinations(patterns or ("*",), OWN_PORTS).check_unresolved((host, port))
    except Refused:
        return True
    return False


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "localhost", "a.localhost.", "[::1]", "169.254.169.254"])
def test_local_address_is_refused_without_name_resolution(host: str) -> None:
    assert refused_unresolved(host)
    assert not refused_unresolved(host, 443, host.lower().rstrip("."))


def test_names_are_permitted_without_name_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "getaddrinfo")
    assert not refused_unresolved("example.com")
    assert refused_unresolved("example.com", 443, "*.example.org")


def test_own_ports_are_refused_without_name_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubcache.clients.destinations._is_own", lambda number: number == "10.0.0.7")
    assert refused_unresolved("10.0.0.7", 8080)
    assert not refused_unresolved("10.0.0.7", 22)
    assert not refused_unresolved("10.0.0.8", 8080)

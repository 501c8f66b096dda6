"""A node's listener for peers, and the address at which they reach it."""

import socket

import pytest
from hubcache.fleet import own_address
from hubcache.fleet.connection import FleetConnection
from hubcache.fleet.fleet_options import FleetOptions
from hubcache.fleet.own_address import own_host
from hubcache.oci.errors import ConfigError


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")


def options(listen: tuple[str, int] = ("127.0.0.1", 0), address: tuple[str, int | None] | None = None) -> FleetOptions:
    return FleetOptions("s3://name/prefix", 1 << 30, False, listen, address, "1.0.0")


def test_peers_connect_to_the_listener() -> None:
    connection = FleetConnection.open(options())
    try:
        port = connection.listener.getsockname()[1]
        assert connection.me.address == f"http://127.0.0.1:{port}"
        assert connection.me.version == "1.0.0"
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    finally:
        connection.close()


def test_listener_at_all_addresses_has_that_of_the_way_to_the_bucket() -> None:
    connection = FleetConnection.open(options(("", 0)))
    try:
        port = connection.listener.getsockname()[1]
        assert connection.me.address == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("cache-1.example", 99), "http://cache-1.example:99"),
        (("cache-1.example", None), "http://cache-1.example:{port}"),
        (("fd00::1", 99), "http://[fd00::1]:99"),
    ],
)
def test_address_of_the_option_wins(address: tuple[str, int | None], expected: str) -> None:
    connection = FleetConnection.open(options(address=address))
    try:
        assert connection.me.address == expected.format(port=connection.listener.getsockname()[1])
    finally:
        connection.close()


def test_each_start_is_another_node() -> None:
    first, second = FleetConnection.open(options()), FleetConnection.open(options())
    try:
        assert first.me.id != second.me.id
    finally:
        first.close()
        second.close()


def test_port_that_is_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigError, match="hubcache_peer_listen"):
        FleetConnection.open(options(other.getsockname()[:2]))


def test_bucket_whose_settings_are_not_complete_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match=r"^hubcache_bucket") as caught:
        FleetConnection.open(options())
    assert "\n" not in str(caught.value)


def test_host_of_a_listener_is_its_own() -> None:
    assert own_host("10.1.2.3", ("127.0.0.1", 9)) == "10.1.2.3"


def test_interface_of_the_default_route_is_taken_where_the_bucket_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_address, "_ANYWHERE", ("127.0.0.1", 9))
    assert own_host("", ("bucket.invalid", 9)) == "127.0.0.1"


def test_name_of_the_machine_is_taken_where_there_is_no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_address, "_ANYWHERE", ("nowhere.invalid", 9))
    assert own_host("0.0.0.0", ("bucket.invalid", 9)) == socket.gethostname()


@pytest.mark.parametrize("host", ["a b", "user@host", "name/path", f"{'a' * 64}.example"])
def test_address_that_other_nodes_cannot_use_is_an_error(host: str) -> None:
    with pytest.raises(ConfigError, match="hubcache_peer_address: not an address"):
        FleetConnection.open(options(address=(host, 99)))

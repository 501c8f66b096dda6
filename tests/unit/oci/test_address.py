"""Recognition of local addresses."""

import pytest
from hubcache.oci.address import is_local_address, is_local_host, literal_address


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.255.0.9", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.1", "::1", "::", "fe80::1",
     "fe80::1%eth0", "febf::1", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:169.254.169.254", "::127.0.0.1",
     "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "2002:a9fe:a9fe::", "fd00:ec2::254", "100.100.100.200",
     "168.63.129.16", "192.0.0.192", "::ffff:168.63.129.16", "64:ff9b::6464:64c8", "224.0.0.1", "ff02::1"],
)  # fmt: skip
def test_addresses_of_this_machine_its_link_and_metadata_services_are_local(address: str) -> None:
    assert is_local_address(address)


@pytest.mark.parametrize(
    "address",
    ["192.0.2.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "8.8.8.8", "2001:db8::1", "fd00::1",
     "::ffff:10.0.0.1", "64:ff9b::808:808", "2002:808:808::1", "registry.example", "", "127.0.0"],
)  # fmt: skip
def test_addresses_of_public_and_private_networks_are_not_local(address: str) -> None:
    assert not is_local_address(address)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.1", "127.0.0.1"), ("0x7f.1", "127.0.0.1"), ("2130706433", "127.0.0.1"), ("017700000001", "127.0.0.1"),
     ("10.0.0.1.", "10.0.0.1"), ("1.256", "1.0.1.0"), ("0", "0.0.0.0"), ("[::1]", "::1"), ("::ffff:1.2.3.4", "1.2.3.4"),
     ("0XA.0.0.1", "10.0.0.1")],
)  # fmt: skip
def test_literal_address_has_every_spelling_that_resolvers_take(host: str, expected: str) -> None:
    assert str(literal_address(host)) == expected


@pytest.mark.parametrize(
    "host",
    ["registry.example", "1.2.3.4.5", "256.1", "1.2.3.256", "4294967296", "08.1", "0x", "", ".", "1..2", "-1",
     "\uff11"],
)  # fmt: skip
def test_name_is_not_a_literal_address(host: str) -> None:
    assert literal_address(host) is None


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost", "127.1", "[::1]", "169.254.169.254"])
def test_host_that_is_local_without_name_resolution(host: str) -> None:
    assert is_local_host(host)


@pytest.mark.parametrize("host", ["localhost.example", "notlocalhost", "10.0.0.1", "registry.example"])
def test_host_that_is_not_local_without_name_resolution(host: str) -> None:
    assert not is_local_host(host)

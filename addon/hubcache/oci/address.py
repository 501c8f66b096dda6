"""Addresses that mean this machine or its own link: no upstream may send anybody there, and no client."""

import ipaddress

_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")))
"""Metadata services of AWS over IPv6, Alibaba, Azure and Oracle, which are not link-local; 169.254.169.254 is."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address without its zone, and an IPv4 one that is mapped into IPv6 (RFC 4291 section 2.5.5.2) as IPv4; raises
    `ValueError`."""
    found = ipaddress.ip_address(text.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


def is_local_address(text: str) -> bool:
    """Whether an IP address is loopback, unspecified, link-local, multicast or a cloud's metadata service.

    RFC 6890 for the ranges. Of 0.0.0.0/8 ("this network") Linux takes at least 0.0.0.0 for itself. IPv4 addresses
    inside of IPv6 ones (RFC 4291 section 2.5.5, RFC 6052, RFC 3056) are what they are outside. Private networks are not
    inner: a registry and its CDN may well be in one. What is no address is not inner.
    """
    try:
        found = parse_address(text)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        found = _embedded(found) or found
    if isinstance(found, ipaddress.IPv4Address) and found.packed[0] == 0:
        return True
    is_special = found.is_loopback or found.is_unspecified or found.is_link_local or found.is_multicast
    return is_special or found in _METADATA


def _embedded(found: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    is_compatible = found.packed[:12] == bytes(12) and found.packed[12:] > b"\0\0\0\1"  # not :: and not ::1
    return ipaddress.IPv4Address(found.packed[12:]) if is_compatible or found in _NAT64 else found.sixtofour

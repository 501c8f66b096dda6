"""Recognizes local addresses: those of this machine, of its link, and of cloud metadata services.

Neither an upstream nor a client may make the proxy connect to one.
"""

import ipaddress
import re

_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")))
"""Metadata services of AWS over IPv6, Alibaba, Azure and Oracle. Others use 169.254.169.254, which is link-local."""

_IPV4_PART = re.compile(r"0[xX][0-9a-fA-F]{1,8}|0[0-7]{0,11}|[1-9][0-9]{0,9}")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Parse an IP address without its zone; an IPv4 address mapped into IPv6 (RFC 4291 section 2.5.5.2) becomes IPv4.

    Raises `ValueError`.
    """
    found = ipaddress.ip_address(text.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


def literal_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is without name resolution; None for a name.

    Resolvers also take IPv4 addresses of fewer parts, and octal and hexadecimal ones (POSIX `inet_addr`): `127.1`.
    """
    host = host.strip("[]")
    try:
        return parse_address(host)
    except ValueError:
        pass
    parts = host.removesuffix(".").split(".")
    if len(parts) > 4 or not all(map(_IPV4_PART.fullmatch, parts)):
        return None
    *first, last = (int(part, 0 if part[:2].lower() == "0x" else 8 if part[0] == "0" else 10) for part in parts)
    if any(number > 255 for number in first) or last >= 1 << 8 * (4 - len(first)):
        return None
    return ipaddress.IPv4Address(sum(number << 8 * (3 - place) for place, number in enumerate(first)) + last)


def is_local_host(host: str) -> bool:
    """Whether a host is a local address without name resolution: a literal one, or `localhost` (RFC 6761 section
    6.3)."""
    name = host.lower().rstrip(".")
    address = literal_address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    return is_local_address(str(address))


def is_local_address(text: str) -> bool:
    """Whether an IP address is loopback, unspecified, link-local, multicast or a cloud's metadata service.

    The ranges are those of RFC 6890. Linux treats at least 0.0.0.0 of 0.0.0.0/8 ("this network") as itself. IPv4
    addresses embedded in IPv6 ones (RFC 4291 section 2.5.5, RFC 6052, RFC 3056) count as IPv4. Addresses of private
    networks are not local, since a registry and its CDN may be in one. Returns False for text that is not an address.
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
    """Return the IPv4 address that is embedded in an IPv6 address, if any."""
    is_compatible = found.packed[:12] == bytes(12) and found.packed[12:] > b"\0\0\0\1"  # not :: and not ::1
    return ipaddress.IPv4Address(found.packed[12:]) if is_compatible or found in _NAT64 else found.sixtofour

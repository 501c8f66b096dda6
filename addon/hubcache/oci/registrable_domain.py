"""Registrable domains, the parts of host names that their owners registered (Public Suffix List)."""

import functools

from publicsuffixlist import PublicSuffixList


@functools.cache
def _public_suffixes() -> PublicSuffixList:
    """Return the list. It is parsed when it is used first: that takes 50 ms, and most starts do not need it."""
    return PublicSuffixList()


def registrable_domain(host: str) -> str:
    """Return the registrable domain of a host: `docker.io` for `registry-1.docker.io`.

    This is the host itself where it is a public suffix or has one label. Top-level domains that are not in the list
    (.local, .internal) count as suffixes.
    """
    return _public_suffixes().privatesuffix(host.lower()) or host.lower()

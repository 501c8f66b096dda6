"""Registrable domains, the parts of host names that their owners registered (Public Suffix List)."""

from publicsuffixlist import PublicSuffixList

_LIST = PublicSuffixList()


def registrable_domain(host: str) -> str:
    """Return the registrable domain of a host: `docker.io` for `registry-1.docker.io`.

    This is the host itself where it is a public suffix or has one label. Top-level domains that are not in the list
    (.local, .internal) count as suffixes.
    """
    return _LIST.privatesuffix(host.lower()) or host.lower()

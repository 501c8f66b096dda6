"""Registrable domains: the part of a host name that one owner registered, by the Public Suffix List."""

from publicsuffixlist import PublicSuffixList

_LIST = PublicSuffixList()


def registrable_domain(host: str) -> str:
    """`docker.io` for `registry-1.docker.io`; the host itself where it is a public suffix or has one label.

    A top-level domain that is not on the list (.local, .internal) is a suffix all the same.
    """
    return _LIST.privatesuffix(host.lower()) or host.lower()

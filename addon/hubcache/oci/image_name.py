"""Parses image names as docker does."""

from dataclasses import dataclass
from typing import Self

from .digest import Digest
from .reference import parse_name, parse_reference
from .registry import HUB_HOST, HUB_NAMESPACES


@dataclass(frozen=True, slots=True)
class ImageName:
    """One image: registry host, repository, and tag or digest."""

    host: str
    repository: str
    reference: str | Digest

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `debian`, `debian:12`, `owner/name@sha256:…`, `ghcr.io/owner/name:tag`; raises `RegistryError`.

        The first part is a host if it contains a dot or a colon or is `localhost`. Without a host the image is Docker
        Hub's, and without a namespace its repository is in `library/`.
        """
        name, at, digest = text.strip().partition("@")
        host, slash, rest = name.partition("/")
        if not slash or not _is_host(host):
            host, rest = HUB_HOST, name
        if host in HUB_NAMESPACES:
            host = HUB_HOST
        repository, colon, tag = rest.partition(":")
        if host == HUB_HOST and "/" not in repository:
            repository = f"library/{repository}"
        return cls(host.lower(), parse_name(repository), parse_reference(digest if at else tag if colon else "latest"))

    def __str__(self) -> str:
        """Return the name as users write it, in its shortest form, always with a tag or digest: `debian:12`."""
        name = short_name(self.host, self.repository)
        return f"{name}{'@' if isinstance(self.reference, Digest) else ':'}{self.reference}"


def short_name(host: str, repository: str) -> str:
    """Return the name of a repository as users write it, in its shortest form: `debian`, `ghcr.io/owner/name`."""
    if host != HUB_HOST:
        return f"{host}/{repository}"
    if repository.startswith("library/") and repository.count("/") == 1:
        return repository.removeprefix("library/")
    return f"docker.io/{repository}" if _is_host(repository.partition("/")[0]) else repository


def _is_host(part: str) -> bool:
    """Whether the first part of a name, before a slash, is a host."""
    return "." in part or ":" in part or part == "localhost"

"""How long the rows about repositories, tags and registries live, and how a damaged one is read.

A fact that is not written again is deleted when its lifetime ends, unless it is about stored content.
"""

from collections.abc import Callable, Container

from ..decide.records import decode_tags
from ..oci.errors import RegistryError
from .index import Index

FACT_LIFETIME = 90 * 86400.0
"""Seconds after which a fact that was not written again, and that is not about stored content, is deleted."""

TENTATIVE_LIFETIME = 86400.0
"""Seconds for which content counts as private because a client tried to fetch it with credentials. The time is short
because the registry may refuse the request, and clients can invent any number of digests and tokens."""

_SOON_SECONDS = 86400.0


def decode_or[T, E](decode: Callable[[str], T], row: object, default: E) -> T | E:
    """Decode a row; return `default` when there is none or it is damaged: the fact is then learned again."""
    try:
        return decode(row) if isinstance(row, str) else default
    except (ValueError, TypeError, LookupError, AttributeError, RegistryError):
        return default


def renew_facts(index: Index, stored: Container[str]) -> None:
    """Extend the lifetime of facts about stored content: links are written only once, and no fact is written during an
    outage."""
    expiring = index.expiring(FACT_LIFETIME / 2)
    if not expiring:
        return
    links = (key.removeprefix("link/").partition("@") for key, _, _, _ in index.rows("link/"))
    repositories = {repository for repository, _, digest in links if digest in stored}

    def is_of_stored_content(tag_row: object) -> bool:
        return any(str(record.digest) in stored for record in decode_or(decode_tags, tag_row, {}).values())

    def is_needed(key: str, value: object) -> bool:
        kind, _, name = key.partition("/")
        match kind:
            case "link" | "private" | "type" | "referrers":
                return name.rpartition("@")[2] in stored
            case "tag":
                return is_of_stored_content(value)
            case "moves":
                return is_of_stored_content(index.get(f"tag/{name}"))
            case _:
                return name in repositories

    index.extend_lifetime([key for key, value in expiring if is_needed(key, value)], FACT_LIFETIME)


def renew_private(index: Index, stored: Container[str]) -> None:
    """Renew the rows of stored private content, so that it stays private even if the program was off for long, or never
    ran long enough for `renew_facts`. Call this before anything is served.
    """
    expiring = (row for row in index.expiring(_SOON_SECONDS) if row[0].startswith("private/"))
    rows = {key: value for key, value in expiring if key.removeprefix("private/") in stored}
    index.write_batches(rows, FACT_LIFETIME)

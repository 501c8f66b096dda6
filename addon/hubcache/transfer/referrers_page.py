"""A page of the referrers API, as a registry sends it (distribution spec, "Listing Referrers")."""

from dataclasses import dataclass

import aiohttp
from yarl import URL

from ..oci.errors import BadUpstream, RegistryError, Unavailable
from ..oci.manifest import MAX_MANIFEST
from ..oci.reference import ReferrersTarget, parse_target, referrers_query
from .session import read_text

_MAX_FILTERS = 255
"""Characters of `OCI-Filters-Applied` that are kept; the spec has one filter, `artifactType`."""

_MAX_QUERY = 4096
"""Characters of the query of a next page; what registries put there to find their place again has some hundreds."""


@dataclass(frozen=True, slots=True)
class ReferrersPage:
    """The image index as it came, the header `OCI-Filters-Applied`, and the query of the next page ("" on the last)."""

    body: bytes
    filters_applied: str
    next_query: str


async def read_referrers_page(response: aiohttp.ClientResponse, asked: ReferrersTarget) -> ReferrersPage:
    """Read a page; raises `Unavailable` when it breaks off, `BadUpstream` when it cannot be one."""
    try:
        body = await read_text(response, MAX_MANIFEST)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"transfer of referrers broke off: {type(error).__name__}") from error
    return ReferrersPage(
        body, response.headers.get("OCI-Filters-Applied", "")[:_MAX_FILTERS], _following(response, asked)
    )


def _following(response: aiohttp.ClientResponse, asked: ReferrersTarget) -> str:
    """The query of the next page (RFC 8288, `rel="next"`).

    Only the query is taken: a registry may call itself by another name than the one it is reached by. A link to
    anything but the same listing is refused, since without its further pages a listing would look whole.
    """
    try:
        if "next" not in response.links:
            return ""
        url = response.links["next"]["url"]
        query = referrers_query(url.raw_query_string) if isinstance(url, URL) else ""
        if isinstance(url, URL) and parse_target(url.raw_path) == asked and len(query) <= _MAX_QUERY:
            return query
    except (ValueError, IndexError, RegistryError):  # yarl's words for malformed URLs, and a path of no API
        pass
    raise BadUpstream("upstream's next page of referrers is somewhere else", {"repository": asked.repository})

"""A page of the referrers API, as a registry sends it (distribution spec, "Listing Referrers")."""

from dataclasses import dataclass

import aiohttp
from yarl import URL

from ..oci.errors import BadUpstream, RegistryError
from ..oci.manifest import MAX_MANIFEST
from ..oci.reference import ReferrersTarget, parse_target, referrers_query
from .response_body import read_text_body

_MAX_FILTERS = 255
"""Characters of `OCI-Filters-Applied` that are kept; the spec has one filter, `artifactType`."""

_MAX_QUERY = 4096
"""Characters of the query of a next page; the cursors of registries have some hundreds."""


@dataclass(frozen=True, slots=True)
class ReferrersPage:
    """The image index as received, the header `OCI-Filters-Applied`, and the query of the next page ("" on the last
    page)."""

    body: bytes
    filters_applied: str
    next_query: str


async def read_referrers_page(response: aiohttp.ClientResponse, requested: ReferrersTarget) -> ReferrersPage:
    """Read a page; raises `Unavailable` when the transfer breaks off, `BadUpstream` when it is not a valid page."""
    body = await read_text_body(response, MAX_MANIFEST, "referrers")
    filters = response.headers.get("OCI-Filters-Applied", "")[:_MAX_FILTERS]
    return ReferrersPage(body, filters, _next_query(response, requested))


def _next_query(response: aiohttp.ClientResponse, requested: ReferrersTarget) -> str:
    """Return the query of the next page (RFC 8288, `rel="next"`).

    Only the query of the link is used, since a registry may have another name for itself than the cache has for it. A
    link to anything but the same list is refused, since without its further pages a list would look complete.
    """
    try:
        if "next" not in response.links:
            return ""
        url = response.links["next"]["url"]
        query = referrers_query(url.raw_query_string) if isinstance(url, URL) else ""
        if isinstance(url, URL) and parse_target(url.raw_path) == requested and len(query) <= _MAX_QUERY:
            return query
    except (ValueError, IndexError, RegistryError):  # raised by yarl for malformed URLs, and for a path outside the API
        pass
    raise BadUpstream(
        "upstream's link to the next page of referrers has another path", {"repository": requested.repository}
    )

"""What the requests to the bucket cost at the list prices of Amazon S3."""

from collections.abc import Mapping

PRICES = "Amazon S3 Standard, us-east-1, November 2026"

_DOLLARS_FOR_WRITE = 0.005 / 1000
"""PUT, COPY, POST and LIST."""

_DOLLARS_FOR_READ = 0.0004 / 1000
"""GET and HEAD. DELETE is free."""

_PART = 8 << 20
"""Bytes of a part of an upload, see `bucket_upload`."""

_WRITES = ("put", "list", "upload")


def request_cost(requests: Mapping[str, int], uploaded: int) -> float:
    """Return the dollars for requests by kind, and for the parts of `uploaded` bytes.

    An upload in parts costs a request to begin, one for each part and one to complete. Small ones are sent in a single
    request, so that the result is a bound from above. Transfer and storage are not included.
    """
    parts = uploaded // _PART + 2 * requests.get("upload", 0)
    writes = sum(requests.get(kind, 0) for kind in _WRITES) + parts
    return writes * _DOLLARS_FOR_WRITE + requests.get("get", 0) * _DOLLARS_FOR_READ

"""A content view of mitmproxy for manifests and configs, which mitmweb and the console choose by media type."""

import json
from collections.abc import Callable

from mitmproxy import contentviews

from ..oci.digest import Digest
from ..oci.errors import DigestInvalid
from ..oci.json_reader import read_json
from ..oci.manifest import MAX_MANIFEST
from ..oci.media import COMMON_TYPES, OCTET_STREAM
from .manifest_tables import is_renderable, render

_TYPES = frozenset(
    {
        *COMMON_TYPES,
        "application/vnd.oci.artifact.manifest.v1+json",
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_MAX_OBJECTS, _MAX_VALUES = 16_000, 80_000
"""Limits of braces and commas, which are counted before a document is parsed: parsing occupies the event loop, in which
clients are served. Those of `oci.manifest` are about half as large."""
_MAX_TEXT = 256 << 10
"""Bytes of a document that is shown as JSON; of a larger one the first bytes are shown."""
_MAX_HEX = 1024
_PRIORITY = 2.0
"""Above the view of mitmproxy for JSON, which has 1."""


class ManifestContentview(contentviews.Contentview):
    """Shows image indexes, referrers, manifests and configs as tables, and other content as JSON or hexadecimal."""

    name = "OCI"

    def __init__(self) -> None:
        self.is_stored: Callable[[Digest], bool] | None = None
        """Whether the store has content; None until the store is open."""

    def render_priority(self, data: bytes, metadata: contentviews.Metadata) -> float:
        """Return a priority above that of JSON for manifests and configs; a config is served as a blob, without a
        media type of its own."""
        if metadata.content_type in _TYPES:
            return _PRIORITY if data else -1
        is_blob = metadata.content_type == OCTET_STREAM and data[:1] == b"{" and len(data) <= _MAX_TEXT
        return _PRIORITY if is_blob and b'"rootfs"' in data and b'"architecture"' in data else -1

    def prettify(self, data: bytes, metadata: contentviews.Metadata) -> str:
        """Return the tables, or content of another kind as it is."""
        document = _parse(data)
        if isinstance(document, dict) and is_renderable(document):
            return render(document, len(data), self._stored)
        if document is not None and len(data) <= _MAX_TEXT:
            try:
                return json.dumps(document, indent=2)
            except RecursionError:
                pass  # nested as deeply as the parser permits
        return _hexadecimal(data)

    def _stored(self, digest: str) -> bool | None:
        if self.is_stored is None:
            return None
        try:
            return self.is_stored(Digest.parse(digest))
        except DigestInvalid:
            return None


def _parse(data: bytes) -> object:
    """Return the JSON document, None where there is none, or it is too large."""
    if data.count(b"{") > _MAX_OBJECTS or data.count(b",") > _MAX_VALUES:
        return None
    try:
        return read_json(data, MAX_MANIFEST)
    except ValueError:
        return None


def _hexadecimal(data: bytes) -> str:
    lines = [f"{len(data)} bytes, which are no manifest"]
    for start in range(0, min(len(data), _MAX_HEX), 16):
        row = data[start : min(start + 16, _MAX_HEX)]
        text = "".join(chr(each) if 0x20 <= each < 0x7F else "." for each in row)
        lines.append(f"{start:08x}  {row.hex(' '):<47}  {text}")
    return "\n".join([*lines, "…"] if len(data) > _MAX_HEX else lines)

"""The keys of the objects in the bucket.

No key is a directory of another: gateways that keep objects in a file system (SeaweedFS, MinIO) refuse that. The names
of repositories contain slashes, so `_`, which no part of such a name can be, separates them from what follows.
"""

import hashlib

from ..oci.digest import Digest
from ..oci.errors import DigestInvalid
from ..oci.manifest import MAX_MANIFEST

BLOBS = "blob"
"""Prefix of the blobs that anonymous clients may read."""

PRIVATE_BLOBS = "private"
"""Prefix of the blobs of private repositories; there are none unless an option permits them."""

MANIFESTS = "manifest"
TAGS = "tag"
LEASES = "lease"
NODES = "node"
POPULARITY = "popularity"
SWEEP_STATE = "sweep/state"
SECRET = "secret"  # noqa: S105 - the key of the object
"""The secret by which nodes authenticate to each other."""

_SMALL = 4 << 10
_MOST_BYTES = {
    LEASES: _SMALL,
    NODES: _SMALL,
    SECRET: _SMALL,
    "probe": _SMALL,
    TAGS: 64 << 10,  # 16 answers
    POPULARITY: 1 << 20,  # 40,000 counts of 16 bytes, as base64
    "sweep": 4 << 20,  # 60 bytes of each node
    MANIFESTS: 2 * MAX_MANIFEST,  # the body as base64
}


def blob(digest: Digest, *, private: bool = False) -> str:
    """Return the key of a blob's bytes."""
    return f"{PRIVATE_BLOBS if private else BLOBS}/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def blob_digest(key: str) -> Digest | None:
    """Return the digest of the blob that has this key, public or private; None for other keys."""
    parts = key.split("/")
    if len(parts) != 4 or parts[0] not in (BLOBS, PRIVATE_BLOBS) or parts[2] != parts[3][:2]:
        return None
    try:
        return Digest.parse(f"{parts[1]}:{parts[3]}")
    except DigestInvalid:
        return None


def manifest(registry: str, repository: str, digest: Digest) -> str:
    """Return the key of a manifest; `registry` is the host of the registry."""
    return f"{MANIFESTS}/{registry}/{repository}/_/{digest.algorithm}-{digest.hex}"


def tag(registry: str, repository: str, name: str) -> str:
    """Return the key of what is known about a tag; `registry` is the host of the registry."""
    return f"{TAGS}/{registry}/{repository}/_/{name}"


def lease(name: str) -> str:
    """Return the key of a lease. A name may have slashes (`blob/sha256:...`, `sweep`)."""
    return f"{LEASES}/{name}"


def blob_lease(digest: Digest) -> str:
    """Return the name of the lease of the node that fetches a blob."""
    return f"blob/{digest}"


def hashed(*parts: str) -> str:
    """Return a short name for a lease on something whose own name is long or arbitrary."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:32]


def node(identity: str) -> str:
    """Return the key of a node's heartbeat."""
    return f"{NODES}/{identity}"


def popularity(identity: str) -> str:
    """Return the key of a node's request counts."""
    return f"{POPULARITY}/{identity}"


def is_of_pulls(key: str) -> bool:
    """Whether requests for this object are made for pulls, and not in the background: by heartbeats and sweeps."""
    first, _, rest = key.partition("/")
    return first in (BLOBS, PRIVATE_BLOBS, MANIFESTS, TAGS) or (first == LEASES and rest != "sweep")


def most_bytes(key: str) -> int:
    """Return the largest size of an object that is read at once; larger ones were not written by a node."""
    return _MOST_BYTES.get(key.partition("/")[0], 2 * MAX_MANIFEST)

"""What a fleet uses of the cache of its own node."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..decide.records import Visibility
from ..oci.digest import Digest
from ..store.store import Store
from ..transfer.fills import Fills

type Permits = Callable[[str, str, Digest, bool], bool]
"""Whether every client may read a digest in a repository of a registry's host without a request to the registry, which
in an outage (True) is permitted for longer."""

type GetVisibility = Callable[[str, str], Visibility | None]
"""Returns what this node last observed of a repository of a registry's host; None when it never was public here."""

type ContentChanged = Callable[[str, str, str, bool, str | None], Awaitable[None]]
"""Forgets what a push or delete changed: registry's host, repository, reference, whether that is a blob's digest, and
the digest of the manifest whose referrers changed."""

type BeginFill = Callable[[str, str, Digest], Awaitable[object]]
"""Begins to store a public blob of a repository of a registry's host, unless it is stored or a fill of it runs. Raises
`HubcacheError`."""

type Pause = Callable[[str, str, float], None]
"""Sends no anonymous requests to a registry's host for a kind of content, for some seconds."""


@dataclass(frozen=True, slots=True)
class LocalCache:
    """The store and the fills of this node, and what other nodes may cause in it."""

    store: Store
    fills: Fills
    permits: Permits
    begin_fill: BeginFill
    visibility: GetVisibility
    content_changed: ContentChanged
    pause: Pause

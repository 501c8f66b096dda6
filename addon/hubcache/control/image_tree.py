"""The manifests of an image and what they refer to, as a command fetches them."""

import logging
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from ..oci.digest import Digest
from ..oci.errors import BadUpstream, HubcacheError, ManifestUnknown
from ..oci.manifest import Descriptor, parse_manifest
from ..oci.media import COMMON_TYPES, normalize_accept
from ..oci.reference import fallback_tag
from ..serve.prefetch import Walk, select_platforms
from ..serve.repository_view import RepositoryView
from .errors import NotKnown
from .held_content import HeldContent
from .parts import Parts
from .platforms import platform_name

logger = logging.getLogger("hubcache")

NEGOTIATION = normalize_accept(", ".join(COMMON_TYPES))
"""The `Accept` of dockerd, containerd, podman, skopeo, crane and cosign, whose tags are fetched."""

_MAX_REFERRERS = 32
"""Referrers of one manifest that are fetched."""

COSIGN_SUFFIXES = (".sig", ".att", ".sbom")
"""Ends of the tags at which cosign stores signatures, attestations and SBOMs of a digest."""


@dataclass(slots=True)
class ImageTree:
    """The content of one image: sizes in bytes by digest, in the order in which a client reads it."""

    manifests: dict[Digest, int] = field(default_factory=dict)
    blobs: dict[Digest, int] = field(default_factory=dict)
    attestations: list[Digest] = field(default_factory=list)


async def fetch_manifests(
    parts: Parts, view: RepositoryView, root: Digest, platforms: Set[str] | None, held: HeldContent
) -> ImageTree:
    """Store the manifests of an image, of an index those for `platforms`, and of its referrers; return the tree.

    Raises `HubcacheError`. Referrers that cannot be read are missing in the result: pulls succeed without them.
    """
    tree = ImageTree()
    await _fetch_tree(parts, view, root, platforms, held, tree)
    for subject in (root, *tree.attestations):
        referrers = parts.prefetch.referrers_of if subject != root else partial(_referrers_of_image, parts)
        try:
            for referrer in (await referrers(view, subject))[:_MAX_REFERRERS]:
                if referrer not in tree.manifests:
                    await _fetch_tree(parts, view, referrer, None, held, tree)
        except HubcacheError as error:
            logger.debug("hubcache: referrers of %s are not fetched: %s", subject, error)
    return tree


async def _fetch_tree(
    parts: Parts, view: RepositoryView, root: Digest, platforms: Set[str] | None, held: HeldContent, tree: ImageTree
) -> None:
    walk = Walk(root)
    while (step := walk.next()) is not None:
        digest, depth = step
        held.add(digest)
        found = await parts.manifests.by_digest(view, digest, head=False)
        tree.manifests[digest] = found.size
        children = parse_manifest(found.body or b"{}")
        walk.count(children)
        for child in children:
            if not child.is_manifest:
                tree.blobs[child.digest] = child.size
        for child in _wanted(children, platforms):
            walk.add(child.digest, depth + 1)
            if child.attests is not None:
                tree.attestations.append(child.digest)
    if walk.is_cut:
        raise BadUpstream("the image refers to too many manifests or blobs", {"digest": str(root)})


def _wanted(children: tuple[Descriptor, ...], platforms: Set[str] | None) -> list[Descriptor]:
    """Return the manifests to fetch; raises `NotKnown` for an index without a manifest for any of the platforms."""
    wanted = select_platforms(children, platforms)
    if not wanted and platforms and any(child.is_manifest for child in children):
        offered = dict.fromkeys(platform_name(child.platform) for child in children if child.platform)
        missing = ", ".join(sorted(map(platform_name, platforms)))
        raise NotKnown(f"the image has no manifest for {missing}; it has {', '.join(offered) or 'no platforms'}")
    return wanted


async def _referrers_of_image(parts: Parts, view: RepositoryView, subject: Digest) -> list[Digest]:
    """Return the referrers of an image that the registry lists, by the API or by the fallback tag, and what is at the
    tags of cosign. A HEAD precedes each GET of a tag: most do not exist, and a GET may count against the rate limit."""
    found, tags = list[Digest](), [f"{subject.algorithm}-{subject.hex}{suffix}" for suffix in COSIGN_SUFFIXES]
    try:
        found += _manifests_in((await parts.referrers.by_subject(view, subject, "")).body)
    except ManifestUnknown:
        tags.append(fallback_tag(subject))
    for tag in tags:
        with suppress(ManifestUnknown):
            await view.upstream.head_manifest(view.repository, tag, NEGOTIATION)
            result = await parts.referrers.by_fallback_tag(view, tag, NEGOTIATION, head=False)
            is_list = tag == fallback_tag(subject)
            found += _manifests_in(result.body or b"{}") if is_list else [result.digest]
    return found


def _manifests_in(body: bytes) -> list[Digest]:
    return [child.digest for child in parse_manifest(body) if child.is_manifest]

"""Platforms as users write them (`linux/arm64`), and as `oci.manifest` describes those of an image index."""

import re
from collections.abc import Iterable

from .errors import InvalidCommand

_PART = r"[a-z0-9][a-z0-9_.-]{0,31}"
_PLATFORM = re.compile(rf"({_PART})/({_PART})(?:/({_PART}))?")
_DEFAULT_VARIANTS = {("arm64", "v8"): "", ("amd64", "v1"): ""}
"""Variants that image indexes may omit (containerd, `platforms/database.go`)."""


def parse_platforms(platforms: Iterable[str] | None) -> frozenset[str] | None:
    """Return platforms in the form that `serve.prefetch.select_platforms` takes; raises `InvalidCommand`.

    None, or no platform, means all. A platform without a variant means all its variants.
    """
    return frozenset(map(_parse, platforms or ())) or None


def _parse(text: str) -> str:
    found = _PLATFORM.fullmatch(text)
    if found is None:
        raise InvalidCommand(f"{text[:100]!r} is not a platform; expected one such as linux/amd64 or linux/arm/v7")
    system, architecture, variant = found.groups()
    variant = _DEFAULT_VARIANTS.get((architecture, variant), variant or "")
    return f"{system}/{architecture}/{variant}"


def platform_name(platform: str) -> str:
    """Return a platform of an image index as users write it."""
    return platform.rstrip("/")

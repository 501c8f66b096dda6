"""Checks the bucket of the fleet that the cache belongs to."""

from collections.abc import Iterator

from ..text import age, counted
from .finding import Finding, ok, warning
from .target import Target

_SWEPT_SECONDS = 86400.0
"""Age of the last sweep from which on something is wrong: a fleet sweeps far more often."""


def check_bucket(target: Target) -> Iterator[Finding]:
    """Check whether the bucket answers, is swept and takes uploads; nothing for a cache that works alone."""
    if target.report is None or target.report.get("fleet") is None:
        return
    fleet, now = target.report["fleet"], target.report["now"]
    if fleet["problem"]:
        yield warning(
            "bucket",
            f"{fleet['bucket']} cannot be used: {fleet['problem']}",
            "check its endpoint (AWS_ENDPOINT_URL), credentials and name; the cache works alone until it answers",
        )
        return
    yield ok("bucket", f"{fleet['bucket']} answers, {counted(len(fleet['nodes']), 'node')}")
    versions = sorted({node["version"] for node in fleet["nodes"]})
    if len(versions) > 1:
        yield warning("fleet", f"nodes have the versions {', '.join(versions)}", "update all nodes to one version")
    uploads = fleet["uploads"]
    if uploads["refused"]:
        yield warning(
            "bucket",
            f"{counted(uploads['refused'], 'upload')} found no space in the bucket",
            "raise hubcache_bucket_size at all nodes if the bucket may grow",
        )
    sweep = fleet["sweep"]
    if sweep is not None and now - sweep["at"] > _SWEPT_SECONDS:
        yield warning("bucket", f"the last sweep was {age(sweep['at'], now)}", "look for 'sweep' in the nodes' logs")

"""Checks of the registry as the cache reaches it, by the probe of the control socket."""

import time
from collections.abc import Iterator
from typing import Any

from ..errors import CommandError
from ..text import duration
from .finding import Finding, ok, problem, skipped, warning
from .network import clock_finding
from .target import Target

LOW = 0.1
"""Share of the rate limit below which a warning is given."""

_SECONDS = 60.0


def check_registry(target: Target) -> Iterator[Finding]:
    """Have the cache ask the registry for a token and a manifest, without its store."""
    if target.client is None or target.report is None:
        if not target.is_remote:
            yield skipped("registry", "the cache asks it, and does not run")
        return
    try:
        probe = target.client.get("/v1/registry-probe", {"registry": target.registry}, seconds=_SECONDS)
    except CommandError as error:
        yield problem("registry", f"{target.registry}: {error}", "see hubcache status")
        return
    yield from findings(probe, target.registry)


def findings(probe: dict[str, Any], registry: str) -> Iterator[Finding]:
    """Yield the findings about a probe's result: its steps, the rate limit and the clock."""
    steps = probe["steps"]
    failed = next((step for step in steps if step["error"]), None)
    if failed is not None:
        yield problem(
            "registry",
            f"{registry}: {failed['name']}: {failed['error']}",
            "check DNS, firewall and outbound proxy of the cache's machine; stored images are still served",
        )
    else:
        yield ok(
            "registry", f"{registry}: {', '.join(f'{step["name"]} in {duration(step["seconds"])}' for step in steps)}"
        )
    if limit := probe.get("ratelimit"):
        yield _rate_limit(limit, registry)
    clock = clock_finding(probe.get("date"), time.time(), registry)
    if clock is not None:
        yield clock


def _rate_limit(limit: dict[str, Any], registry: str) -> Finding:
    text = f"{limit['remaining']} of {limit['limit']} pulls remain at {registry}"
    if limit["remaining"] > limit["limit"] * LOW:
        return ok("rate limit", text)
    advice = "set hubcache_username and hubcache_password_file, or wait; stored images are served without limit"
    return (warning if limit["remaining"] else problem)("rate limit", text, advice)

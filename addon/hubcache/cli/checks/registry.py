"""Checks of the registry as the cache reaches it, by the probe of the control socket."""

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import CommandError
from ..text import duration
from .finding import Finding, ok, problem, skipped, warning
from .network import clock_finding
from .target import Target

LOW = 0.1
"""Share of the rate limit below which a warning is given."""

_SECONDS = 60.0
_COUNT = re.compile(r"\d{1,9}")


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
    failed = next((step for step in probe["steps"] if step["error"]), None)
    if failed is not None:
        yield problem(
            "registry",
            f"{registry}: {failed['step']}: {failed['error']}",
            "check DNS, firewall and outbound proxy of the cache's machine; stored images are still served",
        )
    else:
        done = ", ".join(f"{step['step']} in {duration(step['seconds'])}" for step in probe["steps"])
        through = f" through {probe['proxy']}" if probe["proxy"] else ""
        yield ok("registry", f"{registry}{through}: {done}")
    limit = _rate_limit(probe["ratelimit"] or {}, registry)
    clock = clock_finding(probe["date"], time.time(), registry)
    yield from (finding for finding in (limit, clock) if finding is not None)


def _rate_limit(limit: Mapping[str, str], registry: str) -> Finding | None:
    """Return the finding about the headers of a rate limit, such as `100;w=21600`; None if the registry has none."""
    allowed, remaining = (_COUNT.match(limit.get(name, "")) for name in ("limit", "remaining"))
    if allowed is None or remaining is None:
        return None
    text = f"{remaining[0]} of {allowed[0]} pulls remain at {registry}"
    if int(remaining[0]) > int(allowed[0]) * LOW:
        return ok("rate limit", text)
    advice = "set hubcache_username and hubcache_password_file, or wait; stored images are served without limit"
    return (warning if int(remaining[0]) else problem)("rate limit", text, advice)

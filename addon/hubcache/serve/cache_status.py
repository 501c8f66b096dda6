"""`Cache-Status` (RFC 9211): what was done, for those who look at flows or at `curl -v`."""

NAME = "hubcache"


def hit(ttl: float | None = None) -> str:
    """Served from the store; `ttl` in seconds of freshness left, for what has a lifetime."""
    return f"{NAME}; hit" if ttl is None else f"{NAME}; hit; ttl={round(ttl)}"


def validated() -> str:
    """Served from the store after the upstream said that it is still right."""
    return f"{NAME}; fwd=stale; fwd-status=200; detail=validated"


def stale(age_over: float, reason: str) -> str:
    """Served from the store although not fresh for `age_over` seconds, because of `reason` (RFC 5861)."""
    quoted = reason.replace("\\", "").replace('"', "'")
    return f'{NAME}; hit; ttl={-max(1, round(age_over))}; detail="{quoted}"'


def fetched(*, stored: bool, collapsed: bool = False) -> str:
    """Fetched for this request, or for an earlier one that this one joined (`collapsed`)."""
    return f"{NAME}; fwd=uri-miss" + ("; stored" if stored else "") + ("; collapsed" if collapsed else "")


def bypassed() -> str:
    """Passed through with the client's own credentials."""
    return f"{NAME}; fwd=bypass"

"""Values of the `Cache-Status` field (RFC 9211), which show in mitmweb and in `curl -v` how an answer was made."""

NAME = "hubcache"


def hit(ttl: float | None = None) -> str:
    """Return the value for a fresh answer from the store; `ttl` is the remaining freshness lifetime in seconds."""
    return f"{NAME}; hit" if ttl is None else f"{NAME}; hit; ttl={round(ttl)}"


def validated() -> str:
    """Return the value for an answer from the store that the upstream has just validated."""
    return f"{NAME}; fwd=stale; fwd-status=200; detail=validated"


def stale(age_over: float, reason: str) -> str:
    """Return the value for a stale answer, `age_over` seconds past its lifetime, because of `reason` (RFC 5861)."""
    quoted = reason.replace("\\", "").replace('"', "'")
    return f'{NAME}; hit; ttl={-max(1, round(age_over))}; detail="{quoted}"'


def fetched(*, stored: bool, collapsed: bool = False) -> str:
    """Return the value for a fetched answer; `collapsed`: fetched for an earlier request, which this one joined."""
    return f"{NAME}; fwd=uri-miss" + ("; stored" if stored else "") + ("; collapsed" if collapsed else "")


def bypassed() -> str:
    """Return the value for a request that was forwarded with the client's own credentials."""
    return f"{NAME}; fwd=bypass"

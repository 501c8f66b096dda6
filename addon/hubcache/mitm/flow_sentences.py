"""Says in one sentence how a request was answered, for the comment of its flow.

The sentence begins with the marker's word, or for a failure with the side that caused it: `client error`,
`cache error` or `upstream error`.
"""

import json
import re
from typing import NamedTuple

from ..serve.messages import Answer, Forward, Request, Result
from . import amounts
from .flow_markers import Marker

_STALE = re.compile(r'hubcache; hit; ttl=-(\d+); detail="([^"]*)"')
"""The value of `Cache-Status` of a stale answer: seconds past its lifetime, and the reason."""
_CLIENT_ERRORS = frozenset({400, 405, 413, 416, 431})
"""Statuses with which the cache refuses a request that is malformed; all others are those of the upstream."""
_CACHE_ERRORS = frozenset({500, 507})
_MAX_REASON = 200
"""Characters of an error message, which may be an upstream's."""


class Sentence(NamedTuple):
    """What became of a request: its marker, and the sentence, to which size and duration are added at the end."""

    marker: Marker
    text: str


def of_answer(answer: Answer, host: str, tag_lifetime: float) -> Sentence:
    """Return the sentence for an answer about the registry `host`; `tag_lifetime` in seconds."""
    status = answer.headers.get("Cache-Status", "")
    match answer.result:
        case Result.HIT:
            return _sentence(Marker.HIT, "from the store")
        case Result.REVALIDATED:
            return _sentence(Marker.REVALIDATED, f"{host} confirmed it; from the store")
        case Result.STALE:
            return _sentence(Marker.STALE, _stale(status, host, tag_lifetime))
        case Result.MISS:
            return _sentence(Marker.MISS, _fetched(status, host))
        case Result.BYPASS:
            return _sentence(Marker.TOKEN, f"the token service answered {answer.status}")
        case Result.LOCAL:
            return _local(answer)
        case Result.ERROR:
            return _error(answer, host)


def of_forward(forward: Forward, request: Request) -> Sentence:
    """Return the sentence for a request that is passed on to its registry."""
    host = request.registry.host
    if request.method not in ("GET", "HEAD"):
        return _sentence(Marker.PUSH, f"to {host}")
    if request.credentials is not None and forward.kind in ("manifest", "blob", "referrers"):
        return _sentence(Marker.PRIVATE, f"to {host} with the client's own login, not stored")
    return _sentence(Marker.PASSED, f"to {host}")


def of_passed(host: str) -> Sentence:
    """Return the sentence for a request to a host that is no registry."""
    return _sentence(Marker.PASSED, f"to {host}, which is no registry of this cache")


def of_tunnel(host: str) -> Sentence:
    """Return the sentence for a connection whose contents are passed on unchanged."""
    return _sentence(Marker.TUNNEL, f"to {host}, contents not decrypted")


def of_refusal(reason: str) -> Sentence:
    """Return the sentence for a request to a destination that is not permitted."""
    return _sentence(Marker.REFUSED, reason)


def of_failed_upstream(host: str, status: int) -> Sentence:
    """Return the sentence for a request that was passed on, and to which the registry answered 5xx."""
    return Sentence(Marker.ERROR, f"upstream error {status}: from {host}, to which the request was passed")


def of_failure(fault: str, reason: str, before: str) -> Sentence:
    """Return the sentence for a request that failed; `fault` is client, cache or upstream, `before` the sentence so
    far."""
    text = f"{fault} error: {_short(reason)}"
    return Sentence(Marker.ERROR, f"{text}; {before}" if before else text)


def ending(size: int, whole: int | None, seconds: float) -> str:
    """Return what is added at the end of a request: bytes of the body that were sent, of `whole` if that is known."""
    part = f" of {amounts.size(whole)}" if whole is not None and whole > size else ""
    sent = f"{amounts.size(size)}{part} " if size or part else ""
    return f", {sent}in {amounts.duration(seconds)}"


def _sentence(marker: Marker, text: str) -> Sentence:
    return Sentence(marker, f"{marker.value}: {_short(text)}")


def _stale(status: str, host: str, tag_lifetime: float) -> str:
    found = _STALE.fullmatch(status)
    if found is None:
        return "served from the store"
    over, reason = int(found[1]), found[2]
    reason = _with_host(reason.partition(";")[0], host)
    age = f", validated {amounts.duration(over + tag_lifetime)} ago" if over > 1 else ""
    return f"{reason}; served from the store{age}"


def _with_host(reason: str, host: str) -> str:
    """Return a reason that names the registry instead of calling it upstream."""
    return re.sub(r"\Aupstream\b", host, reason)


def _fetched(status: str, host: str) -> str:
    if "; collapsed" in status:
        return f"from {host}, in a download that an earlier request began"
    return f"from {host} and stored" if "; stored" in status else f"from {host}, not stored"


def _local(answer: Answer) -> Sentence:
    if answer.kind == "setup":
        return _sentence(Marker.SETUP, "a page of the cache itself")
    if answer.kind == "token":
        return _sentence(Marker.TOKEN, "issued by the cache, grants nothing")
    if answer.status == 401:
        return _sentence(Marker.LOCAL, "the cache asks the client for a token")
    return _sentence(Marker.LOCAL, "answered by the cache")


def _error(answer: Answer, host: str) -> Sentence:
    reason = _short(_with_host(_message(answer.body), host))
    if answer.status == 401:
        return _sentence(Marker.LOCAL, f"the client is asked for a token: {reason}" if reason else "asks for a token")
    fault = "upstream"
    if answer.status in _CLIENT_ERRORS or _code(answer.body) == "NAME_UNKNOWN":
        fault = "client"
    elif answer.status in _CACHE_ERRORS or reason.startswith(("offline", "the cache ")):
        fault = "cache"
    return Sentence(Marker.ERROR, f"{fault} error {answer.status}" + (f": {reason}" if reason else ""))


def _message(body: bytes) -> str:
    return str(_first_error(body).get("message") or "")


def _code(body: bytes) -> str:
    return str(_first_error(body).get("code") or "")


def _first_error(body: bytes) -> dict[str, object]:
    """Return the first error of a body that `serve.errors` rendered; the answer to a HEAD request has none."""
    return dict(json.loads(body)["errors"][0]) if body else {}


def _short(text: str) -> str:
    """Return text on one line, without control characters, cut to a length that fits in a list."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if len(line) <= _MAX_REASON else f"{line[: _MAX_REASON - 1]}…"

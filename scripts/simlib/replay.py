"""Replays a trace against a policy and counts its hits."""

from dataclasses import dataclass

from .policies import Policy
from .trace import Kind, Trace

WARM_UP = 0.2
"""Share of the requests, the first ones, that are not counted."""


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of 0 to 1: of requests, of bytes and of whole images that were hits, and of bytes that were written.

    A whole image is a pull that asked for a config or layer and got every one that it asked for from the store.
    """

    objects: float
    bytes: float
    images: float
    written: float


def replay(trace: Trace, policy: Policy, warm_up: float = WARM_UP) -> Score:
    """Ask `policy` for the whole trace."""
    first = int(len(trace) * warm_up)
    sizes, kinds = trace.sizes, trace.kinds
    hits = hit_bytes = total_bytes = written = 0
    whole: dict[int, bool] = {}
    for at, (now, key, pull) in enumerate(zip(trace.times, trace.keys, trace.pulls, strict=True)):
        size = sizes[key]
        hit = policy.request(at, now, key, size)
        if at == first:
            written = policy.written
        if at < first:
            continue
        total_bytes += size
        if hit:
            hits += 1
            hit_bytes += size
        if kinds[key] != Kind.MANIFEST and pull >= 0:
            whole[pull] = hit and whole.get(pull, True)
    count = len(trace) - first
    return Score(
        hits / count if count else 0.0,
        hit_bytes / total_bytes if total_bytes else 0.0,
        sum(whole.values()) / len(whole) if whole else 0.0,
        (policy.written - written) / total_bytes if total_bytes else 0.0,
    )

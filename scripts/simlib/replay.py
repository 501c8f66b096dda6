"""Replays a trace with a policy and counts the hits."""

from collections.abc import Sequence
from dataclasses import dataclass

from .policies import Policy
from .trace import Kind, Trace

WARM_UP = 0.2
"""Share of the requests, from the start of the trace, that fill the cache and are not counted."""


@dataclass(frozen=True, slots=True)
class Score:
    """Shares from 0 to 1: hits of requests, of bytes and of whole images, and bytes written, of the bytes requested.

    A pull that requests a config or layers is a hit of a whole image if all of these are hits.
    """

    objects: float
    bytes: float
    images: float
    written: float


type Curve = Sequence[tuple[float, Score]]
"""Cache sizes, as shares of all distinct bytes, each with the score of one policy."""


def replay(trace: Trace, policy: Policy, warm_up: float = WARM_UP) -> Score:
    """The score of `policy` for a trace."""
    first = int(len(trace) * warm_up)
    sizes, kinds = trace.sizes, trace.kinds
    hits = hit_bytes = total_bytes = written = 0
    whole: dict[int, bool] = {}
    for index, (now, key, pull) in enumerate(zip(trace.times, trace.keys, trace.pulls, strict=True)):
        size = sizes[key]
        hit = policy.request(index, now, key, size)
        if index == first:
            written = policy.written
        if index < first:
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

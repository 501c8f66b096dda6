"""How long shared answers may be used."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lifetimes:
    """Option values, in seconds: how long a tag is fresh, how long an error is remembered, and how long after its
    lifetime an answer may be used while the registry does not answer."""

    tag: float = 60.0
    error: float = 30.0
    max_stale: float = 0.0

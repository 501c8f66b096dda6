"""The status of the scrub, for metrics and the status page."""

from dataclasses import dataclass


@dataclass(slots=True)
class ScrubStatus:
    """The number of objects and bytes that the scrub has verified since the start, and its progress. `finished_at` is
    when it last finished a round (seconds since the epoch), `progress` the part of the current round that is done, 0 to
    1.
    """

    objects: int = 0
    bytes: int = 0
    finished_at: float | None = None
    progress: float = 0.0

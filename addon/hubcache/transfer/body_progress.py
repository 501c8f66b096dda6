"""Contains what is known of a body that is being sent."""

from dataclasses import dataclass


@dataclass(slots=True)
class BodyProgress:
    """How much of a body was sent so far, and what sending it waited for."""

    sent: int = 0
    """Bytes that the client's connection took."""
    source_wait: float = 0.0
    """Seconds in which no bytes could be read from the source yet."""
    client_wait: float = 0.0
    """Seconds in which the client's connection took no more bytes."""
    error: str = ""
    """Why the source cut the body short, if it did."""
    is_complete: bool = False
    """Whether all of the body was sent."""

    def add_sent(self, count: int) -> None:
        """Count bytes that the client's connection took."""
        self.sent += count

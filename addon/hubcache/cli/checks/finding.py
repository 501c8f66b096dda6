"""What a check found, and what the user can do about it."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """How serious a finding is; a `PROBLEM` makes pulls fail, or bypass the cache, now."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was checked, what was found, and for all but `OK` what to do."""

    state: State
    check: str
    text: str
    advice: str = ""

    def report(self) -> dict[str, Any]:
        """Return the finding as JSON."""
        return asdict(self)


def ok(check: str, text: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(State.OK, check, text)


def warning(check: str, text: str, advice: str) -> Finding:
    """Return a finding that does not prevent pulls through the cache now."""
    return Finding(State.WARNING, check, text, advice)


def problem(check: str, text: str, advice: str) -> Finding:
    """Return a finding that makes pulls fail, or bypass the cache."""
    return Finding(State.PROBLEM, check, text, advice)


def skipped(check: str, text: str) -> Finding:
    """Return that a check was not made, and why."""
    return Finding(State.SKIPPED, check, text)

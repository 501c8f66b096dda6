"""What the upstreams of one node have in common: where they find answers of other nodes, and which they may use."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..decide.budget import Budget
from ..decide.policy import VISIBILITY_LIFETIME
from .answer_records import ErrorAnswer
from .change_times import ChangeTimes
from .clock import BucketClock
from .leaders import Leaders
from .lifetimes import Lifetimes
from .local_cache import GetVisibility
from .shared_answers import SharedAnswers

_AHEAD_SECONDS = 5.0
"""An answer from the future by more than this is not used: the clock of the node that wrote it was wrong. The bucket's
time is known to a second."""

_ERROR_SECONDS = 2.0
"""By how much the times of two events may be wrong that two nodes have observed: each knows the bucket's time to a
second."""

_FAILURES_PER_SECOND = 10.0
"""Errors about content without an object in the bucket, on average, for which a node takes a lease or writes an object.
Clients can invent names, and each costs four requests to the bucket. A burst is ten seconds' worth."""


def _failure_budget() -> Budget:
    return Budget(_FAILURES_PER_SECOND, time.monotonic())


@dataclass(frozen=True, slots=True)
class Sharing:
    """The shared answers, the rules for their use, and the identity of this node.

    `pause_began` is called with a registry's host, a kind of content and seconds when the registry answered 429 to an
    anonymous request of this node. `visibility` is what this node's store knows of repositories. Times are local: in
    seconds since the epoch by this machine's clock.
    """

    answers: SharedAnswers
    clock: BucketClock
    node: str
    pause_began: Callable[[str, str, float], None]
    visibility: GetVisibility
    leaders: Leaders
    lifetimes: Lifetimes = field(default_factory=Lifetimes)
    times: ChangeTimes = field(default_factory=ChangeTimes)
    failures: Budget = field(default_factory=_failure_budget)
    refusals_of_unknown: ChangeTimes = field(default_factory=lambda: ChangeTimes(forgets=True))

    def local(self, at: float, now: float) -> float | None:
        """Return the local time of an answer at a time of the bucket; None when it lies in the future."""
        answered_at = self.clock.to_local(at)
        return min(answered_at, now) if answered_at <= now + _AHEAD_SECONDS else None

    def is_ahead(self, at: float) -> bool:
        """Whether a time of the bucket lies in the future: such an answer counts as absent, and may be replaced."""
        return at > self.clock.now() + _AHEAD_SECONDS

    def is_fresh(self, answered_at: float, now: float) -> bool:
        """Whether an answer may be used as one of the registry: it shows what a tag refers to, and who may read it."""
        return now - answered_at < self._tag_lifetime

    def is_usable_stale(self, answered_at: float, now: float) -> bool:
        """Whether an answer may be used while the registry does not answer."""
        return now - answered_at < self._tag_lifetime + self.lifetimes.max_stale

    @property
    def _tag_lifetime(self) -> float:
        return min(self.lifetimes.tag, VISIBILITY_LIFETIME)

    def raise_if_fresh(self, answer: ErrorAnswer, host: str, repository: str, now: float) -> None:
        """Raise an error of the registry, unless it is old, or something in the repository changed since: what was
        missing may have been pushed by another name."""
        answered_at = self.local(answer.at, now)
        if answered_at is None or now - answered_at >= self.lifetimes.error:
            return
        if answered_at > self.times.last(host, repository, "") + _ERROR_SECONDS:
            raise answer.to_raise(answered_at)

    def may_fail(self) -> bool:
        """Whether content without an object in the bucket may be requested with a lease: clients can invent names."""
        return self.failures.wait(time.monotonic()) == 0.0

    def count_failure(self) -> bool:
        """Count an error about content without an object; returns whether an object may be written about it."""
        return self.failures.spend(time.monotonic())

    # -- changes ----------------------------------------------------------------------------------------------------

    def record_change(self, host: str, repository: str, reference: str, now: float) -> None:
        """Record a push or delete; a reference is a tag or a digest."""
        self.times.record(now, host, repository, reference)
        self.times.record(now, host, repository, "")

    def was_public(self, host: str, repository: str) -> bool:
        """Whether this node has seen that every client may read the repository, and no refusal since.

        Only the names of such repositories, and those of their tags, are written to the bucket.
        """
        visibility = self.visibility(host, repository)
        return visibility is not None and visibility.public

    def record_refusal(self, host: str, repository: str, at: float) -> None:
        """Record that the registry did not let every client read the repository.

        Clients can invent names of repositories: those that were never public here are remembered as long as there is
        space for them.
        """
        is_unknown = self.visibility(host, repository) is None
        times = self.refusals_of_unknown if is_unknown else self.times
        times.record(at, host, repository)

    def is_outdated(
        self, answered_at: float, host: str, repository: str, *references: str, is_exact: bool = False
    ) -> bool:
        """Whether something changed, or the registry refused a read, after an answer about these references.

        Answers of other nodes count as earlier by what their time may be wrong, unless `is_exact`.
        """
        times = [self.times.last(host, repository), *(self.times.last(host, repository, each) for each in references)]
        times.append(self.refusals_of_unknown.last(host, repository))
        visibility = self.visibility(host, repository)
        if visibility is not None and not visibility.public:  # survives a restart, as the times do not
            times.append(visibility.checked_at)
        return answered_at - (0.0 if is_exact else _ERROR_SECONDS) <= max(times)

    def shows_access(self, answered_at: float, now: float) -> bool:
        """Whether an answer to an anonymous read still shows that every client may read the repository."""
        return now - answered_at < VISIBILITY_LIFETIME

    def shows_access_stale(self, answered_at: float, now: float) -> bool:
        """As `shows_access`, while the registry does not answer."""
        return now - answered_at < VISIBILITY_LIFETIME + self.lifetimes.max_stale

"""What tags refer to, as nodes share it: one object in the bucket for each tag, with an answer for each `Accept`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..oci.errors import ManifestUnknown, RegistryError
from ..transfer.upstream import ManifestHead
from . import keys
from .answer_objects import Version
from .answer_records import ErrorAnswer, TagAnswer, names_only_the_manifest, read_tag, write_tag
from .shared_answers import Update, Write
from .sharing import Sharing
from .values import Fields

_MAX_ANSWERS = 16
"""Answers in an object, for different `Accept` headers; the newest ones are kept. Clients write these headers, and
nearly all clients send the same few."""


@dataclass(frozen=True, slots=True)
class TagLookup:
    """Finds what one tag refers to for one `Accept`, and what to write about it.

    `wall_clock` returns seconds since the epoch; the lookup began at `started_at`. An answer from before `not_before`
    is of no use.
    """

    sharing: Sharing
    host: str
    repository: str
    tag: str
    accept: str
    wall_clock: Callable[[], float]
    started_at: float
    not_before: float

    @property
    def key(self) -> str:
        """The key of the tag's object."""
        return keys.tag(self.host, self.repository, self.tag)

    @property
    def lease(self) -> str:
        """The name of the lease of the node that asks the registry."""
        return f"tag/{keys.hashed(self.host, self.repository, self.tag, self.accept)}"

    def find(self, version: Version) -> ManifestHead | None:
        """Return a fresh answer, None if there is none; raises a fresh error."""
        answer = self._answer(version.fields)
        if isinstance(answer, ErrorAnswer):
            self.sharing.raise_if_fresh(answer, self.host, self.repository, self.wall_clock())
            return None
        head = None if answer is None else self._head(answer, version)
        is_fresh = head is not None and self.sharing.is_fresh(head.answered_at, self.wall_clock())
        return head if head is not None and is_fresh and head.answered_at >= self.not_before - self._error else None

    def find_stale(self, version: Version) -> ManifestHead | None:
        """Return an answer to use while the registry does not answer."""
        answer = self._answer(version.fields)
        head = self._head(answer, version) if isinstance(answer, TagAnswer) else None
        if head is None or not self.sharing.is_usable_stale(head.answered_at, self.wall_clock()):
            return None
        return head if head.answered_at >= self.not_before - self._error else None

    def has_answer(self, version: Version) -> bool:
        """Whether the object has an answer of any age: a HEAD may show that the tag did not move since."""
        return isinstance(self._answer(version.fields), TagAnswer)

    def writes(self, version: Version, head: ManifestHead) -> Sequence[Write]:
        """Return what to write after the registry answered; nothing when the answer lacks digest or size."""
        if head.digest is None or head.size is None or not self.sharing.lifetimes.tag:
            return ()
        if self.sharing.is_outdated(head.answered_at, self.host, self.repository, self.tag, is_exact=True):
            return ()  # a push that was reported meanwhile may have left no object, see `ContentChanges`
        at = self.sharing.clock.to_bucket(head.answered_at)
        return (self._write(version, TagAnswer(head.digest, head.media_type, head.size, at)),)

    def writes_of_error(self, version: Version, error: RegistryError) -> Sequence[Write]:
        """Return what to write after the registry answered with an error about the content.

        A missing tag is written if its repository can be read. Other errors drop the answers that there are, and leave
        no object: the name may be that of a private repository. So do more errors than clients cause by mistake.
        """
        is_within_budget = bool(version.fields) or self.sharing.count_failure()
        if not self.sharing.lifetimes.tag or not is_within_budget:
            return ()
        at = self.sharing.clock.to_bucket(self.started_at)
        if isinstance(error, ManifestUnknown) and self._may_be_shared(error):
            return (self._write(version, ErrorAnswer(error, at)),)
        return (Write(self.key, self._drop(at), version),) if _answers(version.fields) else ()

    def _may_be_shared(self, error: ManifestUnknown) -> bool:
        is_public = self.sharing.was_public(self.host, self.repository)
        return self.sharing.lifetimes.error > 0 and is_public and names_only_the_manifest(error)

    @property
    def _error(self) -> float:
        """Seconds by which the same time may differ after conversions with two estimates of the bucket's clock."""
        return min(1.0, self.sharing.lifetimes.tag / 4)

    @property
    def _negotiation(self) -> str:
        return keys.hashed(self.accept)

    def _answer(self, fields: Fields) -> TagAnswer | ErrorAnswer | None:
        return self._read(_answers(fields).get(self._negotiation))

    def _read(self, fields: object) -> TagAnswer | ErrorAnswer | None:
        answer = read_tag(fields)
        return None if answer is None or self.sharing.is_ahead(answer.at) else answer

    def _head(self, answer: TagAnswer, version: Version) -> ManifestHead | None:
        """Return an answer with its local time; None when it lies in the future or is outdated."""
        answered_at = self.sharing.local(answer.at, self.wall_clock())
        if answered_at is None:
            return None
        repository = (self.host, self.repository)
        # After a push that the object shows, it has no answer from before.
        is_changed = self.sharing.is_outdated(answered_at, *repository, self.tag, is_exact=bool(version.change))
        if is_changed or self.sharing.is_outdated(answered_at, *repository, str(answer.digest)):
            return None
        return ManifestHead(answer.digest, answer.media_type, answer.size, answered_at)

    def _write(self, version: Version, answer: TagAnswer | ErrorAnswer) -> Write:
        return Write(self.key, self._update(answer), version)

    def _update(self, answer: TagAnswer | ErrorAnswer) -> Update:
        def update(fields: Fields) -> Fields:
            before = self._answer(fields)
            if before is not None and before.at > answer.at:
                return fields
            answers = {**_answers(fields), self._negotiation: write_tag(answer, self.sharing.node)}
            return {"answers": self._newest(answers)}

        return update

    def _drop(self, at: float) -> Update:
        """Return what drops the answers from before a time of the bucket."""

        def update(fields: Fields) -> Fields:
            answers = _answers(fields)
            newer = {key: each for key, each in answers.items() if (answer := self._read(each)) and answer.at > at}
            return fields if len(newer) == len(answers) else {"answers": newer}

        return update

    def _newest(self, answers: Fields) -> Fields:
        """Return the newest valid answers."""
        valid = {key: answer.at for key, fields in answers.items() if (answer := self._read(fields)) is not None}
        kept = sorted(valid, key=lambda key: valid[key])[-_MAX_ANSWERS:]
        return {key: answers[key] for key in kept}


def _answers(fields: Fields) -> Fields:
    answers = fields.get("answers")
    return answers if isinstance(answers, Mapping) else {}

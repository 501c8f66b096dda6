"""What is known of repositories and tags: small rows beside the content."""

from collections.abc import Callable, Mapping, Set

from cachetools import LRUCache

from ..decide.moves import Moves
from ..decide.records import (
    Link,
    ReferrersRecord,
    TagRecord,
    Visibility,
    decode_hosts,
    decode_referrers,
    decode_tags,
    encode_hosts,
    encode_referrers,
    encode_tags,
)
from ..oci.digest import Digest
from ..oci.errors import RegistryError, StorageError
from ..oci.reference import subject_of_tag
from .index import Index
from .index_access import IndexAccess

FACT_LIFETIME = 90 * 86400.0
"""Seconds after which a fact that was not written again, and that is not about stored content, is forgotten."""

TENTATIVE_LIFETIME = 86400.0
"""Seconds for which content is taken for private that a client tried to fetch with credentials. It may not be given:
digests, and tokens, can be made up without end."""

MAX_NEGOTIATIONS = 16
"""Answers remembered of one tag; clients that send ever new `Accept` headers must not grow the store."""

MAX_QUESTIONS = 32
"""Answers remembered about the referrers of one digest: listings by type and by page, and tags made from the digest."""

_LOOKED_UP = 16
"""Links looked up at once by who writes them; more are left to the writer thread, each costs some 12 microseconds."""

MAX_NOT_PRIVATE = 20_000
"""Digests that are known not to be private without a look at the index."""


class Facts(IndexAccess):
    """Tags, links, referrers, verdicts and challenges, by registry host and repository."""

    def __init__(self) -> None:
        super().__init__()
        self._pinned_referrers: dict[tuple[str, str], dict[Digest, set[Digest]]] = {}
        """Of repositories with a pin, until something about them changes."""
        self._not_private: LRUCache[Digest, None] = LRUCache(MAX_NOT_PRIVATE)

    def tags(self, registry: str, repository: str, tag: str) -> dict[str, TagRecord]:
        """What is remembered of a tag, by negotiation."""
        value = self._read(f"tag/{registry}/{repository}:{tag}")
        return _told(decode_tags, value, {})

    async def put_tag(self, registry: str, repository: str, tag: str, negotiation: str, record: TagRecord) -> None:
        """Remember what a tag answered."""
        index = self._opened()
        key = f"tag/{registry}/{repository}:{tag}"

        def merged(value: object) -> str:
            records = _told(decode_tags, value, {}) | {negotiation: record}
            return encode_tags(_latest(records, MAX_NEGOTIATIONS))

        await self._write(lambda: index.update(key, merged, FACT_LIFETIME))
        if subject_of_tag(tag) is not None:
            self._pinned_referrers.pop((registry, repository), None)

    def moves(self, registry: str, repository: str, tag: str) -> Moves | None:
        """When a tag moved, as far as that was seen."""
        return _told(Moves.decode, self._read(f"moves/{registry}/{repository}:{tag}"), None)

    async def put_moves(self, moves: Mapping[tuple[str, str, str], Moves]) -> None:
        """Remember when tags moved, by registry, repository and tag."""
        index = self._opened()
        rows: dict[str, object] = {
            f"moves/{host}/{name}:{tag}": seen.encode() for (host, name, tag), seen in moves.items()
        }
        await self._write(lambda: index.set_many(rows, FACT_LIFETIME))

    async def drop_tag(self, registry: str, repository: str, tag: str) -> None:
        """Forget a tag (it was moved or removed)."""
        index = self._opened()
        await self._write(lambda: index.delete(f"tag/{registry}/{repository}:{tag}"))
        self._pinned_referrers.pop((registry, repository), None)

    def link(self, registry: str, repository: str, digest: Digest) -> Link | None:
        """Whether a digest is known to belong to a repository."""
        value = self._read(f"link/{registry}/{repository}@{digest}")
        return _told(Link.decode, value, None)

    async def put_links(
        self,
        registry: str,
        repository: str,
        links: Mapping[Digest, int | None],
        *,
        confirmed: bool = True,
        given: bool = False,
    ) -> None:
        """Remember that digests (with their sizes where known) belong to a repository; what is known is not written.

        A known size outlives one that is not told, and the upstream's word (`confirmed`), or that it gave the bytes
        (`given`), what a manifest says.
        """
        index = self._opened()
        if len(links) <= _LOOKED_UP:
            known = {digest: self.link(registry, repository, digest) for digest in links}
            links = {digest: size for digest, size in links.items() if _is_news(known[digest], confirmed, given)}
        if not links:
            return
        told = {f"link/{registry}/{repository}@{digest}": size for digest, size in links.items()}

        def write() -> None:
            rows: dict[str, object] = {}
            known = index.get_many(told)
            for key, size in told.items():
                before = _told(Link.decode, known.get(key), None)
                if _is_news(before, confirmed, given):
                    was = before or _NO_WORD
                    told_size = was.size if size is None else size
                    rows[key] = Link(told_size, confirmed or was.confirmed, given or was.given).encode()
            if rows:
                index.set_many(rows, FACT_LIFETIME)

        await self._write(write)

    async def drop_link(self, registry: str, repository: str, digest: Digest) -> None:
        """A digest does not belong to a repository (any more)."""
        index = self._opened()
        await self._write(lambda: index.delete(f"link/{registry}/{repository}@{digest}"))

    async def drop_tags_of(self, registry: str, repository: str, digest: Digest) -> None:
        """Forget the tags of a repository that are at this digest."""
        index, prefix = self._opened(), f"tag/{registry}/{repository}:"

        def drop() -> None:
            rows = [(key, value) for key, value, _, _ in index.rows(prefix)]
            at = [
                key
                for key, value in rows
                if any(tag.digest == digest for tag in _told(decode_tags, value, {}).values())
            ]
            index.set_many({}, gone=at)

        await self._write(drop)
        self._pinned_referrers.pop((registry, repository), None)

    def referrers(self, registry: str, repository: str, subject: Digest) -> dict[str, ReferrersRecord]:
        """What is remembered about the referrers of a digest, by question."""
        value = self._read(f"referrers/{registry}/{repository}@{subject}")
        return _told(decode_referrers, value, {})

    async def put_referrers(
        self, registry: str, repository: str, subject: Digest, question: str, record: ReferrersRecord
    ) -> None:
        """Remember what was answered to a question about the referrers of a digest."""
        index = self._opened()
        key = f"referrers/{registry}/{repository}@{subject}"

        def merged(value: object) -> str:
            records = _told(decode_referrers, value, {}) | {question: record}
            return encode_referrers(_latest(records, MAX_QUESTIONS))

        await self._write(lambda: index.update(key, merged, FACT_LIFETIME))
        self._pinned_referrers.pop((registry, repository), None)

    async def drop_referrers(self, registry: str, repository: str, subject: Digest | None = None) -> None:
        """Forget what refers to a digest; without `subject`, to any of the repository's."""
        index, prefix = self._opened(), f"referrers/{registry}/{repository}@{subject or ''}"
        await self._write(lambda: index.set_many({}, gone=[key for key, _, _, _ in index.rows(prefix)]))
        self._pinned_referrers.pop((registry, repository), None)

    def referrers_of(self, registry: str, repository: str) -> dict[Digest, set[Digest]]:
        """By digest, the stored listings of what refers to it and the manifests at tags made from it.

        For repositories with a pin: many rows are read, and what they say is kept in memory.
        """
        known = self._pinned_referrers.get((registry, repository))
        if known is None and self._index is not None:
            try:
                known = _read_referrers(self._index, registry, repository)
                self._pinned_referrers[registry, repository] = known
            except StorageError as error:
                self._note(error)
        return known or {}

    def is_private(self, digest: Digest) -> bool:
        """Whether content was fetched with a client's own credentials, so that it may be nobody else's."""
        return self.private_hosts(digest) is not None

    def private_hosts(self, digest: Digest) -> frozenset[str] | None:
        """The registries that gave the bytes of private content; None where content is not private.

        Each request for content asks this, so that a no is kept in memory. Where the index cannot tell, nobody gave it.
        """
        if self._index is None or digest in self._not_private:
            return None
        try:
            value = self._index.get(f"private/{digest}")
        except StorageError as error:
            self._note(error)
            return frozenset()
        if isinstance(value, str):
            return _told(decode_hosts, value, frozenset())
        self._not_private[digest] = None
        return None

    async def _write_private(self, write: Callable[[], None]) -> None:
        """What was not private may be by then; also where it was looked at while this was being written."""
        self._not_private.clear()
        try:
            await self._write(write)
        finally:
            self._not_private.clear()

    async def put_private(self, digest: Digest, *hosts: str) -> None:
        """Remember that content is private, and that these registries gave its bytes; without any, that it may be soon.

        It outlives the content: that may come again at any moment, and must not be public for one.
        """
        index = self._opened()

        def write() -> None:
            before = index.get(f"private/{digest}")
            known = _told(decode_hosts, before, frozenset())
            if hosts:
                index.set(f"private/{digest}", encode_hosts(known | {*hosts}), FACT_LIFETIME)
            elif before is None:
                index.set(f"private/{digest}", encode_hosts(known), TENTATIVE_LIFETIME)

        await self._write_private(write)

    async def hide(self, registry: str, repository: str, only: Digest | None = None) -> None:
        """A repository turned private, or lost one digest, which some registries say of what turned private: with it
        what no other public one of the registry is known to have by its word.

        What is private then belongs to the registries that gave the bytes, as far as that is known.
        """
        index, own = self._opened(), f"{registry}/{repository}"

        def mark() -> None:
            rows = (
                (key.removeprefix("repository/"), value) for key, value, _, _ in index.rows(f"repository/{registry}/")
            )
            public = {name for name, value in rows if _told(Visibility.decode, value, _CLOSED).public}
            mine: set[str] = set()
            shared: set[str] = set()
            givers: dict[str, set[str]] = {}
            for key, value, _, _ in index.rows("link/"):
                name, _, digest = key.removeprefix("link/").partition("@")
                link = _told(Link.decode, value, _NO_WORD)
                if name == own:
                    if only is None or digest == str(only):
                        mine.add(digest)
                elif name in public and link.confirmed:
                    shared.add(digest)
                if link.given:
                    givers.setdefault(digest, set()).add(name.partition("/")[0])
            hidden: dict[str, object] = {
                f"private/{digest}": encode_hosts(frozenset(givers.get(digest, ()))) for digest in mine - shared
            }
            hidden |= index.get_many(hidden)
            index.set_many(hidden, FACT_LIFETIME)

        await self._write_private(mark)

    def media_type(self, registry: str, digest: Digest) -> str | None:
        """What a registry calls a manifest whose bytes do not tell."""
        value = self._read(f"type/{registry}@{digest}")
        return value if isinstance(value, str) else None

    async def put_media_type(self, registry: str, digest: Digest, media_type: str) -> None:
        """Remember what a registry calls a manifest."""
        index = self._opened()
        await self._write(lambda: index.set(f"type/{registry}@{digest}", media_type, FACT_LIFETIME))

    def visibility(self, registry: str, repository: str) -> Visibility | None:
        """Whether a repository was public when last seen."""
        value = self._read(f"repository/{registry}/{repository}")
        return _told(Visibility.decode, value, None)

    async def put_visibility(self, registry: str, repository: str, visibility: Visibility) -> None:
        """Remember whether a repository is public."""
        index = self._opened()
        await self._write(lambda: index.set(f"repository/{registry}/{repository}", visibility.encode(), FACT_LIFETIME))

    async def renew(self, held: Set[str]) -> None:
        """Let facts about content that is held live on: links are written once, and in an outage nothing is."""
        index = self._opened()

        def is_at_held(tag: object) -> bool:
            return any(str(record.digest) in held for record in _told(decode_tags, tag, {}).values())

        def prolong() -> None:
            ending = index.ending(FACT_LIFETIME / 2)
            if not ending:
                return
            links = (key.removeprefix("link/").partition("@") for key, _, _, _ in index.rows("link/"))
            names = {name for name, _, digest in links if digest in held}
            living = []
            for key, value in ending:
                kind, _, what = key.partition("/")
                match kind:
                    case "link" | "private" | "type" | "referrers":
                        keep = what.rpartition("@")[2] in held
                    case "tag":
                        keep = is_at_held(value)
                    case "moves":
                        keep = is_at_held(index.get(f"tag/{what}"))
                    case _:
                        keep = what in names
                if keep:
                    living.append(key)
            index.prolong(living, FACT_LIFETIME)

        await self._write(prolong)

    def challenge(self, registry: str) -> str | None:
        """The registry's last seen authentication challenge."""
        value = self._read(f"challenge/{registry}")
        return value if isinstance(value, str) else None

    async def put_challenge(self, registry: str, challenge: str) -> None:
        """Remember a registry's authentication challenge."""
        index = self._opened()
        if self.challenge(registry) != challenge:
            await self._write(lambda: index.set(f"challenge/{registry}", challenge))


_CLOSED, _NO_WORD = Visibility(False, 0.0), Link(None, confirmed=False)
"""What is taken for known where a row does not tell: nobody may read it, and no registry said so."""


def _told[T, E](decode: Callable[[str], T], row: object, otherwise: E) -> T | E:
    """What a row tells; `otherwise` where there is none, or one that is damaged: what it told is learned again."""
    try:
        return decode(row) if isinstance(row, str) else otherwise
    except (ValueError, TypeError, LookupError, AttributeError, RegistryError):
        return otherwise


def _latest[R: (TagRecord, ReferrersRecord)](records: dict[str, R], most: int) -> dict[str, R]:
    """So many of the records, those that were validated last."""
    return dict(sorted(records.items(), key=lambda item: item[1].validated_at)[-most:])


def _is_news(known: Link | None, confirmed: bool, given: bool) -> bool:
    return known is None or (confirmed and not known.confirmed) or (given and not known.given)


def _read_referrers(index: Index, registry: str, repository: str) -> dict[Digest, set[Digest]]:
    found: dict[Digest, set[Digest]] = {}
    prefix = f"referrers/{registry}/{repository}@"
    for key, value, _, _ in index.rows(prefix):
        listed = {record.digest for record in _told(decode_referrers, value, {}).values() if record.digest is not None}
        found.setdefault(Digest.parse(key.removeprefix(prefix)), set()).update(listed)
    prefix = f"tag/{registry}/{repository}:"
    for key, value, _, _ in index.rows(f"{prefix}sha256-"):
        subject = subject_of_tag(key.removeprefix(prefix))
        if subject is not None:
            found.setdefault(subject, set()).update(record.digest for record in _told(decode_tags, value, {}).values())
    return found

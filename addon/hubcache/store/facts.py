"""What is known of repositories and tags: small rows beside the content."""

from ..decide.records import Link, TagRecord, Verdict, decode_tags, encode_tags
from ..oci.digest import Digest
from .base import Base

FACT_LIFETIME = 90 * 86400.0
"""Seconds after which a fact that was not written again is forgotten."""

MAX_NEGOTIATIONS = 16
"""Answers remembered of one tag; clients that send ever new `Accept` headers must not grow the store."""


class Facts(Base):
    """Tags, links, verdicts and challenges, by registry host and repository."""

    def tags(self, registry: str, repository: str, tag: str) -> dict[str, TagRecord]:
        """What is remembered of a tag, by negotiation."""
        value = self._read(f"tag/{registry}/{repository}:{tag}")
        return decode_tags(value) if isinstance(value, str) else {}

    async def put_tag(self, registry: str, repository: str, tag: str, negotiation: str, record: TagRecord) -> None:
        """Remember what a tag answered."""
        index = self._opened()
        key = f"tag/{registry}/{repository}:{tag}"

        def merged(value: object) -> str:
            records = (decode_tags(value) if isinstance(value, str) else {}) | {negotiation: record}
            latest = sorted(records.items(), key=lambda item: item[1].validated_at)[-MAX_NEGOTIATIONS:]
            return encode_tags(dict(latest))

        await self._write(lambda: index.update(key, merged, FACT_LIFETIME))

    async def drop_tag(self, registry: str, repository: str, tag: str) -> None:
        """Forget a tag (it was moved or removed)."""
        index = self._opened()
        await self._write(lambda: index.delete(f"tag/{registry}/{repository}:{tag}"))

    def link(self, registry: str, repository: str, digest: Digest) -> Link | None:
        """Whether a digest is known to belong to a repository."""
        value = self._read(f"link/{registry}/{repository}@{digest}")
        return Link.decode(value) if isinstance(value, str) else None

    async def put_links(
        self, registry: str, repository: str, links: dict[Digest, int | None], *, confirmed: bool = True
    ) -> None:
        """Remember that digests (with their sizes where known) belong to a repository."""
        index = self._opened()
        rows: dict[str, object] = {
            f"link/{registry}/{repository}@{digest}": Link(size, confirmed).encode() for digest, size in links.items()
        }
        await self._write(lambda: index.set_many(rows, FACT_LIFETIME))

    async def drop_link(self, registry: str, repository: str, digest: Digest) -> None:
        """A digest does not belong to a repository (any more)."""
        index = self._opened()
        await self._write(lambda: index.delete(f"link/{registry}/{repository}@{digest}"))

    async def drop_tags_of(self, registry: str, repository: str, digest: Digest) -> None:
        """Forget the tags of a repository that are at this digest."""
        index, prefix = self._opened(), f"tag/{registry}/{repository}:"

        def drop() -> None:
            rows = [(key, value) for key, value, _, _ in index.rows(prefix)]
            at = [key for key, value in rows if any(tag.digest == digest for tag in decode_tags(value).values())]
            index.set_many({}, gone=at)

        await self._write(drop)

    def is_private(self, digest: Digest) -> bool:
        """Whether content was fetched with a client's own credentials, so that it may be nobody else's."""
        return self._read(f"private/{digest}") is not None

    async def put_private(self, digest: Digest) -> None:
        """Remember that content is fetched with a client's own credentials."""
        index = self._opened()
        await self._write(lambda: index.set(f"private/{digest}", ""))

    def verdict(self, registry: str, repository: str) -> Verdict | None:
        """Whether a repository was public when last seen."""
        value = self._read(f"repository/{registry}/{repository}")
        return Verdict.decode(value) if isinstance(value, str) else None

    async def put_verdict(self, registry: str, repository: str, verdict: Verdict) -> None:
        """Remember whether a repository is public."""
        index = self._opened()
        await self._write(lambda: index.set(f"repository/{registry}/{repository}", verdict.encode(), FACT_LIFETIME))

    def challenge(self, registry: str) -> str | None:
        """The registry's last seen authentication challenge."""
        value = self._read(f"challenge/{registry}")
        return value if isinstance(value, str) else None

    async def put_challenge(self, registry: str, challenge: str) -> None:
        """Remember a registry's authentication challenge."""
        index = self._opened()
        if self.challenge(registry) != challenge:
            await self._write(lambda: index.set(f"challenge/{registry}", challenge))

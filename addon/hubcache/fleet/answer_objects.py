"""Objects in the bucket that several nodes write: an answer that was requested before a push never replaces the push.

A push writes an object without answers and with a new random `change`. Nodes that asked a registry write their answers
only if the object still has the `change` that it had before they asked.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from ..oci.manifest import MAX_MANIFEST
from .bucket import Bucket
from .values import Fields, decode_value, encode_value, text_field

_MAX_OBJECT = 2 * MAX_MANIFEST
"""Bytes of an object; a manifest is encoded as base64 in it."""

_ATTEMPTS = 5
"""Attempts to write an object that other nodes write at the same time."""


@dataclass(frozen=True, slots=True)
class Version:
    """An object as it was read. It has no fields when it is absent, or in a format that this version cannot read."""

    fields: Fields = field(default_factory=dict)
    e_tag: str | None = None
    change: str = ""
    """The random text of the last push; empty when there was none."""


class AnswerObjects:
    """Reads and writes such objects. All methods raise `BucketUnavailable`."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def read(self, key: str) -> Version:
        """Return the present version of an object."""
        found = await self._bucket.get(key)
        if found is None:
            return Version()
        e_tag = found.entry.e_tag
        fields = decode_value(found.value, _MAX_OBJECT)
        if fields is None:  # what it says about pushes is unknown: each other version counts as changed
            return Version({}, e_tag, f"unreadable {e_tag}")
        return Version(fields, e_tag, text_field(fields, "change") or "")

    async def create(self, key: str, update: Callable[[Fields], Fields]) -> bool:
        """Write what `update` returns for an absent object; returns False where there is one."""
        return await self._bucket.create(key, encode_value({**update({}), "change": ""})) is not None

    async def write(self, key: str, before: Version, update: Callable[[Fields], Fields]) -> bool:
        """Write what `update` returns for the present fields, unless there was a push since the version `before`.

        Returns whether the object has what `update` returns; nothing is written when those are the fields that it got.
        It is called again when another node writes at the same time.
        """
        version = before
        for _ in range(_ATTEMPTS):
            fields = update(version.fields)
            if fields is version.fields:
                return True
            value = encode_value({**fields, "change": before.change})
            if version.e_tag is None:
                written = await self._bucket.create(key, value)
            else:
                written = await self._bucket.replace(key, value, version.e_tag)
            if written is not None:
                return True
            version = await self.read(key)
            if version.change != before.change:
                return False
        return False

    async def mark_changed(self, key: str) -> None:
        """Write that a push or delete changed what the object is about."""
        await self._bucket.put(key, encode_value({"change": secrets.token_hex(8)}))

    async def exists(self, key: str) -> bool:
        """Whether there is an object, readable or not."""
        return await self._bucket.get(key) is not None

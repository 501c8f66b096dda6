"""The secret by which the nodes of a fleet authenticate to each other: an object in the bucket."""

import secrets

from . import keys
from .bucket import Bucket
from .values import decode_value, encode_value, text_field


async def load_secret(bucket: Bucket) -> str | None:
    """Return the secret of the fleet; the first node makes it.

    None when a newer version wrote it in a format that this one cannot read: this node then has no peers. Raises
    `BucketUnavailable`.
    """
    found = await bucket.get(keys.SECRET)
    if found is None:
        made = secrets.token_hex(32)
        if await bucket.create(keys.SECRET, encode_value({"secret": made})) is not None:
            return made
        found = await bucket.get(keys.SECRET)
    return None if found is None else text_field(decode_value(found.value) or {}, "secret") or None

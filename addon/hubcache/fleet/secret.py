"""The secret by which the nodes of a fleet authenticate to each other: an object in the bucket."""

import re
import secrets

from . import keys
from .bucket import Bucket
from .values import decode_value, encode_value, text_field

_is_secret = re.compile("[0-9a-f]{64}").fullmatch
"""It is sent in a header: other text could begin a request to what listens at the address of a node."""


async def load_secret(bucket: Bucket) -> str | None:
    """Return the secret of the fleet; the first node makes it.

    None when the object is not one that this version writes: this node then has no peers. Raises `BucketUnavailable`.
    """
    found = await bucket.get(keys.SECRET)
    if found is None:
        made = secrets.token_hex(32)
        if await bucket.create(keys.SECRET, encode_value({"secret": made})) is not None:
            return made
        found = await bucket.get(keys.SECRET)
    secret = None if found is None else text_field(decode_value(found.value) or {}, "secret")
    return secret if secret is not None and _is_secret(secret) else None

"""Reads small stored bodies into memory, so that head and body are sent together."""

from ..transfer.body_delivery import BodyDelivery
from .messages import MAX_SMALL_BODY, Answer


async def read_small_body(answer: Answer, delivery: BodyDelivery) -> None:
    """Replace the source of an answer by its body where it is stored and has at most `MAX_SMALL_BODY` bytes.

    An answer whose source cannot be read stays as it is.
    """
    if answer.source is not None and answer.source.origin == "store" and 0 < answer.length <= MAX_SMALL_BODY:
        body = await delivery.read_whole(answer.source)
        if body is not None:
            answer.body, answer.source = body, None

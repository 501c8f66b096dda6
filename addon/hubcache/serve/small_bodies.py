"""Reads small stored bodies into memory, so that head and body are sent together."""

from ..transfer.pump import Pump
from .messages import MAX_SMALL_BODY, Answer


async def read_small_body(answer: Answer, pump: Pump) -> None:
    """Replace the source of an answer by its body where it is stored and has at most `SMALL` bytes.

    An answer whose source cannot be read stays as it is.
    """
    if answer.source is not None and answer.source.origin == "store" and 0 < answer.length <= MAX_SMALL_BODY:
        body = await pump.whole(answer.source)
        if body is not None:
            answer.body, answer.source = body, None

"""Reads small stored bodies into memory, so that head and body are sent together and no file stays open."""

from ..oci.errors import StorageError
from ..transfer.sources import FileSource
from .messages import MAX_SMALL_BODY, Answer, Listener, Request


async def read_small_body(request: Request, answer: Answer) -> int:
    """Move a stored body of at most `MAX_SMALL_BODY` bytes from the source of an answer to its `body`.

    Only for requests without credentials: mitmproxy shows and saves an answer with its body, so a body that only some
    clients may read stays in its source. An answer whose file cannot be read stays as it is, too. Returns the number of
    bytes that were read.
    """
    source = answer.source
    is_public = request.listener is Listener.MIRROR or request.credentials is None
    if not is_public or not isinstance(source, FileSource) or not 0 < source.end - source.at <= MAX_SMALL_BODY:
        return 0
    try:
        body = await source.read()
    except StorageError:  # the source fails again when the answer is sent, which ends the body there
        return 0
    await source.close()
    answer.body, answer.source = body, None
    return len(body)

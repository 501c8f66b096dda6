"""Logs why content cannot be stored."""

import logging
import time

from ..decide.throttle import Throttle
from ..oci.errors import NotStored, StorageError

logger = logging.getLogger("hubcache")

_REPEAT_SECONDS = 600.0
"""How long one log line about a storage error stands for all of its kind."""


class StorageErrorLog:
    """The log of storage errors, each kind of error once in `_REPEAT_SECONDS`."""

    def __init__(self) -> None:
        self._throttle = Throttle(_REPEAT_SECONDS, time.monotonic)

    def report(self, error: StorageError) -> None:
        """Log that content cannot be stored; content that the retention policy does not admit is not logged."""
        if isinstance(error, NotStored):
            return
        if self._throttle.permits(str(error).partition(":")[0]):  # the rest of the message may be a file's name
            logger.warning("hubcache: not storing, pulls continue uncached: %s", error)

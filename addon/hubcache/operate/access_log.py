"""Writes the access log: one line of JSON for each request for content, which `scripts/simulate` can replay."""

import json
import logging
import os
from pathlib import Path

from ..serve.messages import Answer, Forward, Request

logger = logging.getLogger("hubcache")


class AccessLog:
    """A file to which lines are appended; they stay in memory until `flush`, so that a request needs no write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._has_failed = False

    def add(self, now: float, request: Request, outcome: Answer | Forward) -> None:
        """Add a line for a request for a manifest or a blob, without credentials and addresses.

        `now` is in seconds since the epoch. Forwarded requests, errors and redirects are not logged.
        """
        if isinstance(outcome, Forward) or outcome.kind not in ("manifest", "blob") or outcome.status >= 300:
            return
        _, _, rest = request.path.partition("/v2/")
        line = {
            "ts": round(now, 3),
            "door": request.listener.value,
            "method": request.method,
            "kind": outcome.kind,
            "registry": request.registry.host,
            "repository": rest.rsplit("/", 2)[0],
            "reference": rest.rsplit("/", 1)[-1],
            "digest": outcome.headers.get("Docker-Content-Digest"),
            "size": outcome.size,
            "status": outcome.status,
            "result": outcome.result.value,
        }
        self._lines.append(json.dumps(line))

    def flush(self) -> None:
        """Write the lines added since the last call; a failure is logged once, until a write succeeds.

        Lines that cannot be written are dropped.
        """
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            with open(self.path, "a", opener=_open) as file:
                file.write("\n".join(lines) + "\n")
            self._has_failed = False
        except OSError as error:
            if not self._has_failed:
                logger.warning("hubcache: access log %s cannot be written: %s", self.path, error)
            self._has_failed = True


def _open(path: str, flags: int) -> int:
    """Open with mode 0600 if the file is new, since it names private repositories; keep the mode of an existing one."""
    return os.open(path, flags, 0o600)

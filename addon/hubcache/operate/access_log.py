"""The access log: a JSON object per request for content, one line each; `scripts/simulate` replays it."""

import json
import logging
import os
from pathlib import Path

from ..serve.messages import Answer, Forward, Request

logger = logging.getLogger("hubcache")


class AccessLog:
    """Appends to a file; lines are kept in memory until `flush`, so that a request costs no write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._broken = False

    def add(self, now: float, request: Request, outcome: Answer | Forward) -> None:
        """Note a request for a manifest or a blob; `now` in seconds since the epoch. No credentials, no addresses."""
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
        """Write what was noted; a file that cannot be written is said once, and tried again."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            with open(self.path, "a", opener=_opened) as file:
                file.write("\n".join(lines) + "\n")
            self._broken = False
        except OSError as error:
            if not self._broken:
                logger.warning("hubcache: access log %s cannot be written: %s", self.path, error)
            self._broken = True


def _opened(path: str, flags: int) -> int:
    """A new file is for its owner alone: it names private repositories. The mode of one that exists is left."""
    return os.open(path, flags, 0o600)

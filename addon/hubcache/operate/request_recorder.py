"""Records requests where users see them: in the metrics, the pulls, the status report and the access log."""

import time
from pathlib import Path

from ..serve.messages import Answer, Forward, Request, Result
from .access_log import AccessLog
from .metrics import Metrics
from .pulls import Pulls
from .record_queue import RecordQueue
from .served_request import ServedRequest
from .status_report import StatusReport


class RequestRecorder:
    """Records the requests of one engine, whichever process serves them."""

    def __init__(self, metrics: Metrics, pulls: Pulls, report: StatusReport) -> None:
        self._metrics = metrics
        self._pulls = pulls
        self._report = report
        self._queue = RecordQueue()
        self._access_log: AccessLog | None = None

    def use_access_log(self, path: Path | None) -> None:
        """Write the access log to this file from now on; None: write none."""
        if path is None:
            self._access_log = None
        elif self._access_log is None or self._access_log.path != path:
            self._access_log = AccessLog(path)

    def began(self, request: Request) -> None:
        """Record a request that has arrived."""
        self._queue.add(self._pulls.begin, request)

    def answered(self, request: Request, outcome: Answer | Forward, count: int = 1) -> None:
        """Record the answer to a request, or that it is forwarded. An answer may be repeated `count` times."""
        result = Result.BYPASS if isinstance(outcome, Forward) else outcome.result
        self._metrics.answered(outcome.kind, result.value, request.listener.value, count)
        if self._access_log is not None:
            for _ in range(count):
                self._access_log.add(time.time(), request, outcome)

    def ended(self, request: ServedRequest) -> None:
        """Record a request that has ended."""
        self._queue.add(self._record_end, request)

    def _record_end(self, request: ServedRequest) -> None:
        self._metrics.request_ended(request)
        self._pulls.add(request)
        self._report.request_ended(request)

    def flush(self) -> None:
        """Record now what was kept for a moment."""
        self._queue.flush()

    def flush_access_log(self) -> None:
        """Write the new lines of the access log."""
        if self._access_log is not None:
            self._access_log.flush()

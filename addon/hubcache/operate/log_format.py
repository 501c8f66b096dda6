"""Formats the log as JSON, for programs that collect logs."""

import json
import logging
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """One JSON object for each record: `time`, `level` and `message`, and the fields of a pull."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line. `fields` of a record (`extra={"fields": {...}}`) are added to its own."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        values = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values | getattr(record, "fields", {}))

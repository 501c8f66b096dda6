"""A record of the log as JSON."""

import json
import logging
import sys
from typing import Any

from hubcache.operate.log_format import JsonFormatter


def formatted(message: str, *arguments: object, **changes: Any) -> dict[str, Any]:
    record = logging.LogRecord("hubcache", logging.WARNING, "", 0, message, arguments, None)
    for name, value in changes.items():
        setattr(record, name, value)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return dict(json.loads(text))


def test_record_has_time_level_and_message() -> None:
    assert formatted("a %s\nline", "second", created=0.5) == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "warning",
        "message": "a second\nline",
    }


def test_fields_are_added() -> None:
    assert formatted("x", fields={"event": "pull", "sent": 5})["sent"] == 5


def test_exception_is_a_field() -> None:
    try:
        raise ZeroDivisionError("a defect")
    except ZeroDivisionError:
        found = formatted("x", exc_info=sys.exc_info())
    assert found["exception"].endswith("ZeroDivisionError: a defect")

"""Keeps requests that are not HTTP out of the log.

Everybody who reaches a port can send them: port scanners, and TLS clients of a port without TLS. aiohttp, which serves
the status page, the commands and the peers of a fleet, answers them with 400, and logs a traceback for most of them.
"""

import logging

from aiohttp.http_exceptions import HttpProcessingError


def keep_bad_requests_out_of_log() -> None:
    """Have aiohttp's servers log no requests that they cannot parse."""
    logging.getLogger("aiohttp.server").addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))

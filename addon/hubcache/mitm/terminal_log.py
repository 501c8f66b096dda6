"""Chooses the format of the log that mitmproxy writes to the terminal."""

import logging
from typing import Any

from mitmproxy import ctx

from ..operate.log_format import JsonFormatter


class TerminalLog:
    """The log on the terminal, in mitmproxy's format unless `hubcache_log_format` chooses another. This is an addon."""

    def __init__(self) -> None:
        self._own_formatter: logging.Formatter | None = None

    def configure(self, updated: set[str]) -> None:
        """Apply the option."""
        if "hubcache_log_format" in updated:
            self._use_json(ctx.options.hubcache_log_format == "json")

    def _use_json(self, is_json: bool) -> None:
        handler = self._handler()
        if handler is None or is_json == isinstance(handler.formatter, JsonFormatter):
            return
        if is_json:
            self._own_formatter = handler.formatter
            handler.setFormatter(JsonFormatter())
        else:
            handler.setFormatter(self._own_formatter)

    @staticmethod
    def _handler() -> logging.Handler | None:
        addon: Any = ctx.master.addons.get("termlog")
        handler = getattr(addon, "logger", None)
        return handler if isinstance(handler, logging.Handler) else None

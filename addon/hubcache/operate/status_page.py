"""The status page and the status as JSON, for the status listener and for `http://hub.cache/`."""

import base64
import hashlib
import json
import re
import time
from functools import cache, partial
from pathlib import Path

from ..setup.setup_pages import Page, SetupPages
from .events import RETRY, event
from .status_report import StatusReport

SOURCE = Path(__file__).with_name("status.html")
"""The page, with its own style and script: it loads nothing but the status."""

SHARED_SECONDS = 1.0
"""For how long all readers get the same snapshot, since any number of them may ask for it."""

_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


class StatusPages:
    """The pages of one cache. `setup` gets the public ones, for `http://hub.cache/`."""

    def __init__(self, report: StatusReport, setup: SetupPages) -> None:
        self.report = report
        self.setup = setup
        setup.public_status = partial(self.page, public=True)
        self._taken: dict[bool, tuple[float, bytes]] = {}

    def page(self, path: str, *, public: bool) -> Page | None:
        """Return the page at a path; None if there is no such page. `public` is as in `StatusReport.snapshot`."""
        match path:
            case "/" | "/status":
                return html_page()
            case "/status.json":
                return Page("application/json", self.snapshot(public=public))
            case "/events" if public:  # an answer through the proxy has an end; browsers ask again after `RETRY`
                return Page("text/event-stream", RETRY + event(self.snapshot(public=True)))
        return None

    def snapshot(self, *, public: bool) -> bytes:
        """Return a snapshot as JSON text in one line; it may be `SHARED_SECONDS` old."""
        now = time.monotonic()
        taken_at, text = self._taken.get(public, (0.0, b""))
        if not text or now - taken_at >= SHARED_SECONDS:
            text = json.dumps(self.report.snapshot(public=public), separators=(",", ":"), allow_nan=False).encode()
            self._taken[public] = (now, text)
        return text


@cache
def html_page() -> Page:
    """Return the status page. Its policy permits its own script and style by their hashes (CSP level 3), and requests
    to its own host, and nothing else."""
    text = SOURCE.read_text()
    hashes = {kind: _hash(content) for kind, content in _INLINE.findall(text)}
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return Page("text/html; charset=utf-8", text.encode(), headers)


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

"""Pulls with a clock of their own, and the requests that they consist of."""

from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.operate import pulls
from hubcache.operate.pull import Pull
from hubcache.operate.pulls import Pulls
from hubcache.operate.served_request import ServedRequest
from hubcache.serve.messages import Listener, Request, Result

CLIENT = "10.0.0.7"
INDEX, MANIFEST, CONFIG, LAYER, OTHER_LAYER = (str(Digest.of(text)) for text in (b"i", b"m", b"c", b"l", b"o"))


class PullHarness:
    """Pulls with a clock of their own, which also gives the times of requests."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.counts: list[str] = []
        self.pulls = Pulls(self.counts.append, lambda: self.now)

    def begin(
        self,
        kind: str,
        reference: str,
        method: str = "GET",
        repository: str = "library/debian",
        registry: str = HUB_HOST,
    ) -> None:
        path = f"/v2/{repository}/{kind}s/{reference}"
        self.pulls.begin(Request(method, path, Registry.parse(registry), Listener.MIRROR, {}, client=CLIENT))

    def end(self, kind: str, reference: str, result: Result = Result.HIT, sent: int = 100, **changes: Any) -> None:
        """Have a request end that has lasted for `duration` seconds."""
        values: dict[str, Any] = {
            "ended": self.now,
            "client": CLIENT,
            "listener": Listener.MIRROR,
            "kind": kind,
            "result": result,
            "status": 200,
            "registry": HUB_HOST,
            "repository": "library/debian",
            "reference": reference,
            "size": sent,
            "sent": sent,
            "first_byte": 0.0,
            "duration": 0.0,
            "is_complete": True,
            "is_private": False,
        }
        self.pulls.add(ServedRequest(**values | changes))

    def request(self, kind: str, reference: str, result: Result = Result.HIT, sent: int = 100, **changes: Any) -> None:
        """Have a request begin and end `duration` seconds later."""
        method = changes.get("method", "GET")
        named = {name: changes[name] for name in ("repository", "registry") if name in changes}
        self.begin(kind, reference, method, **named)
        self.now += changes.get("duration", 0.0)
        self.end(kind, reference, result, 0 if method == "HEAD" else sent, **changes)

    def quiet(self, seconds: float = pulls.QUIET_SECONDS) -> None:
        """Let time pass without requests."""
        self.now += seconds
        self.pulls.end_quiet()

    @property
    def only(self) -> Pull:
        (found,) = self.pulls.recent
        return found


def dockerd(harness: PullHarness, tag: str = "12", result: Result = Result.HIT) -> None:
    """Send the requests of Docker Engine in their order."""
    harness.request("manifest", tag, result, method="HEAD")
    for kind, reference in (("manifest", INDEX), ("manifest", MANIFEST), ("blob", CONFIG), ("blob", LAYER)):
        harness.request(kind, reference, result, 1000)


def pull_harness_fixture() -> Any:
    """Return the fixture `harness`: pulls before the first request."""

    @pytest.fixture
    def harness() -> PullHarness:
        return PullHarness()

    return harness

"""The status page is one file that loads nothing, and its snapshot is shared by its readers."""

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.operate import status_page
from hubcache.operate.metrics import Metrics
from hubcache.operate.pulls import Pulls
from hubcache.operate.status_page import SOURCE, StatusPages, html_page
from hubcache.operate.status_report import StatusReport
from hubcache.setup.setup_pages import Page, SetupPages
from hubcache.transfer.breaker import CircuitBreakers
from support.stores import opened_store

SETUP = SetupPages(Path(__file__), 5000, 8080)


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[StatusPages]:
    async with opened_store(tmp_path / "store") as store:
        report = StatusReport(store, Metrics(), CircuitBreakers(), Pulls(lambda _: None))
        yield StatusPages(report, SETUP)


def page(pages: StatusPages, path: str, *, public: bool = False) -> Page:
    found = pages.page(path, public=public)
    assert found is not None
    return found


def test_policy_has_the_hashes_of_the_only_script_and_style() -> None:
    text = SOURCE.read_text()
    policy = html_page().headers["Content-Security-Policy"]
    for kind in ("script", "style"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy


def test_page_has_no_code_or_style_elsewhere_and_never_sets_markup() -> None:
    text = SOURCE.read_text()
    assert len(re.findall(r"<(?:script|style)\b", text)) == 2
    assert re.findall(r"<[^>]+\s(?:on\w+|style)\s*=", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text) == []
    assert set(re.findall(r'(?:href|src)="([^"#]*?)[":]', text)) == {
        *("data", "/setup", "/status.json", "/metrics", "/healthz", "/evictions"),
    }


@pytest.mark.parametrize("path", ["/", "/status"])
@pytest.mark.parametrize("public", [False, True])
def test_page_is_the_same_for_all(pages: StatusPages, path: str, public: bool) -> None:
    assert page(pages, path, public=public) == html_page()
    assert html_page().headers["Cache-Control"] == "no-store"


def test_status_is_json_of_a_snapshot(pages: StatusPages) -> None:
    for public in (False, True):
        found = page(pages, "/status.json", public=public)
        assert found.media_type == "application/json"
        assert json.loads(found.body)["is_public"] is public


def test_public_events_are_one_event(pages: StatusPages) -> None:
    found = page(pages, "/events", public=True)
    assert found.media_type == "text/event-stream"
    assert found.body.startswith(b'retry: 3000\ndata: {"version":')
    assert found.body.endswith(b"}\n\n")
    assert found.body.count(b"\n") == 3
    assert pages.page("/events", public=False) is None, "the listener has a stream of them"


@pytest.mark.parametrize("path", ["/nothing", "/status/", "/metrics", "/healthz", ""])
def test_other_paths_have_no_page(pages: StatusPages, path: str) -> None:
    assert pages.page(path, public=True) is None


def test_readers_share_a_snapshot_for_a_moment(pages: StatusPages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_page, "SHARED_SECONDS", 1e9)
    first = pages.snapshot(public=True)
    assert pages.snapshot(public=True) is first
    assert pages.snapshot(public=False) is not first
    monkeypatch.setattr(status_page, "SHARED_SECONDS", 0.0)
    assert pages.snapshot(public=True) is not first


def test_setup_pages_have_the_public_pages(pages: StatusPages) -> None:
    found = pages.setup.public_status("/status.json")
    assert found is not None
    assert json.loads(found.body)["is_public"]

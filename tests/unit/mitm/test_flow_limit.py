"""Which flows are removed from the list of mitmweb and of mitmproxy's console, and when."""

import gc
from collections.abc import Iterator

import pytest
from hubcache.mitm import flow_limit
from hubcache.mitm.flow_limit import FlowLimit
from mitmproxy.addons.view import View
from mitmproxy.http import HTTPFlow
from support.mitm import taddons, tflow


class Listed:
    """A list of flows, and the limit."""

    def __init__(self, view: View, limit: FlowLimit) -> None:
        self.view = view
        self.limit = limit

    def add(self, count: int, body: bytes = b"", *, is_running: bool = False) -> list[HTTPFlow]:
        """Add flows, as mitmproxy does when requests are received and answered; returns them."""
        flows = []
        for _ in range(count):
            flow = tflow.tflow(resp=True)
            assert flow.response is not None
            flow.response.content = body
            flow.live = True
            self.view.requestheaders(flow)
            if not is_running:
                self.limit.response(flow)
                flow.live = False
            flows.append(flow)
        return flows


@pytest.fixture
async def listed() -> Iterator[Listed]:  # type: ignore[misc]
    limit, view = FlowLimit(), View()
    limit.most = 100
    with taddons.context(view):
        yield Listed(view, limit)


async def test_oldest_flows_are_removed_in_batches(listed: Listed) -> None:
    flows = listed.add(105)
    assert listed.view.store_count() == 105
    flows += listed.add(1)
    assert list(listed.view) == flows[6:]
    flows += listed.add(1000)
    assert 100 <= listed.view.store_count() <= 105
    assert list(listed.view) == flows[-listed.view.store_count() :]


async def test_running_intercepted_marked_and_commented_flows_stay(listed: Listed) -> None:
    running = listed.add(1, is_running=True)
    kept = listed.add(3)
    kept[0].intercepted = True
    kept[1].marked = ":red_circle:"
    kept[2].comment = "look at this"
    listed.add(500)
    assert all(flow in listed.view for flow in running + kept)
    assert listed.view.store_count() <= 106
    kept[1].marked = ""
    listed.add(500)
    assert kept[1] not in listed.view


async def test_all_flows_stay_when_all_are_marked(listed: Listed) -> None:
    flows = listed.add(104)
    for flow in flows:
        flow.marked = ":red_circle:"
    new = listed.add(50)
    assert all(flow in listed.view for flow in flows)
    assert new[-1] in listed.view


async def test_no_flow_is_removed_without_a_limit(listed: Listed) -> None:
    listed.limit.most = 0
    listed.add(500, b"x" * 100_000)
    assert listed.view.store_count() == 500


async def test_large_bodies_are_limited_too(listed: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_limit, "_MAX_BODIES", 1_000_000)
    listed.add(50, b"x" * 100_000)
    assert 1 <= listed.view.store_count() <= 10
    last = listed.add(1, b"x" * 2_000_000)
    assert list(listed.view) == last


async def test_loaded_flows_stay(listed: Listed) -> None:
    loaded = [tflow.tflow(resp=True) for _ in range(50)]  # from a file: they were never live
    for flow in loaded:
        listed.view.requestheaders(flow)
        listed.limit.response(flow)
    listed.add(500)
    assert list(listed.view)[:50] == loaded
    assert listed.view.store_count() <= 50 + 105


async def test_flows_that_the_user_removed_are_freed(listed: Listed) -> None:
    listed.add(90).clear()
    listed.view.clear()
    gc.collect()  # mitmproxy's `tflow` keeps its flows in a frame that refers to itself
    assert all(flow() is None for flow, _ in listed.limit._ended)
    flows = listed.add(100)
    assert list(listed.view) == flows


async def test_nothing_happens_where_flows_are_not_listed() -> None:
    limit = FlowLimit()
    limit.most = 10
    with taddons.context():
        flows = [tflow.tflow(resp=True) for _ in range(50)]
        for flow in flows:
            flow.live = True
            limit.response(flow)
    assert len(limit._ended) <= 11
    assert all(flow.error is None for flow in flows)

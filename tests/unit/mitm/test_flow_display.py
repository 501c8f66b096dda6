"""How mitmweb displays flows: with the sizes of streamed bodies."""

from typing import Any

from hubcache.mitm.flow_display import with_streamed_sizes
from hubcache.mitm.flow_notes import REQUEST_SIZE, RESPONSE_SIZE
from mitmproxy.flow import Flow
from mitmproxy.http import HTTPFlow
from mitmproxy.tools.web.app import flow_to_json
from support.mitm import tflow

render = with_streamed_sizes(flow_to_json)


def lengths(shown: dict[str, Any]) -> tuple[int | None, int | None]:
    return shown["request"]["contentLength"], shown["response"]["contentLength"]


def streamed_flow() -> HTTPFlow:
    flow = tflow.tflow(resp=True)
    assert flow.response is not None
    flow.request.content = flow.response.content = None
    return flow


def test_streamed_bodies_have_the_size_that_was_counted() -> None:
    flow = streamed_flow()
    flow.metadata |= {REQUEST_SIZE: 5, RESPONSE_SIZE: 31_200_000}
    assert lengths(render(flow)) == (5, 31_200_000)


def test_sizes_that_are_not_known_and_bodies_that_are_kept_stay() -> None:
    flow = streamed_flow()
    assert lengths(render(flow)) == (None, None)
    flow = tflow.tflow(resp=True)
    flow.metadata[RESPONSE_SIZE] = 0
    assert render(flow) == flow_to_json(flow)


def test_other_flows_and_flows_without_an_answer_are_displayed() -> None:
    others: list[Flow] = [tflow.ttcpflow(), tflow.tudpflow(), tflow.tdnsflow(), tflow.tflow()]
    for flow in others:
        flow.metadata |= {REQUEST_SIZE: 5, RESPONSE_SIZE: 5}
        assert render(flow)["id"] == flow.id

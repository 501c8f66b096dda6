"""Adapts how mitmweb and mitmproxy's console display flows: characters of markers, and sizes of streamed bodies."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from mitmproxy import flow
from mitmproxy.utils.emoji import emoji

from . import compat
from .flow_markers import Marker, add_names
from .flow_notes import REQUEST_SIZE, RESPONSE_SIZE

_WEB = "mitmproxy.tools.web.app"
_WEB_NAMES = ("flow_to_json", "APIError", "AuthRequestHandler._require_auth", "FlowContent.get", "RequestHandler.flow")


def add_markers() -> Mapping[Marker, str]:
    """Add the markers to mitmproxy's table of characters, and return their names."""
    # mitmproxy 12.3.1: utils.emoji.emoji. Without it the markers need an emoji font, and have names such as `:key:`.
    return add_names(emoji)


def show_streamed_sizes() -> None:
    """Have mitmweb show the sizes of bodies that were streamed, which mitmproxy does not keep. Without mitmweb nothing
    is done, and where its parts have other names it shows 0 bytes."""
    app: Any = sys.modules.get(_WEB)
    if app is None or any(compat.missing_names([(_WEB, _WEB_NAMES)])):
        return
    # mitmproxy 12.3.1: mitmweb renders each flow with this function of its module.
    app.flow_to_json = with_streamed_sizes(app.flow_to_json)
    download = _without_missing_content(app.FlowContent.get, app.APIError)
    app.FlowContent.get = app.AuthRequestHandler._require_auth(download)


def with_streamed_sizes(to_json: Callable[[flow.Flow], dict[str, Any]]) -> Callable[[flow.Flow], dict[str, Any]]:
    """Return the function that renders a flow for mitmweb, with sizes of streamed bodies."""

    def render(shown: flow.Flow) -> dict[str, Any]:
        rendered = to_json(shown)
        for message, name in (("request", REQUEST_SIZE), ("response", RESPONSE_SIZE)):
            size, fields = shown.metadata.get(name), rendered.get(message)
            if size is not None and fields is not None and fields.get("contentLength") is None:
                fields["contentLength"] = size
        return rendered

    return render


def _without_missing_content(get: Callable[..., Any], error: Callable[[int, str], Exception]) -> Callable[..., Any]:
    """Return mitmweb's handler of downloads, which answers 404 for a body that was not kept: mitmweb offers a download
    for every body whose size it knows."""

    def handle(self: Any, flow_id: str, message: str) -> Any:
        if getattr(self.flow, message).raw_content is None:
            raise error(404, "The body was sent to its receiver without being kept.")
        return get(self, flow_id, message)

    return handle

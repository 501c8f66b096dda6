"""Notes on each flow what became of it: comment, marker, and the sizes of bodies that mitmproxy does not keep."""

import time
from collections.abc import Callable, Iterable, Mapping

from mitmproxy import ctx, flow, http, tcp

from ..oci.errors import HubcacheError, RegistryError
from ..serve.messages import Answer, Forward, Request
from . import amounts, flow_sentences
from .flow_markers import STANDARD_NAMES, Marker
from .flow_sentences import Sentence

COMMENT, MARKER = "hubcache_comment", "hubcache_marker"
"""Metadata: what this program wrote. A flow with another comment or marker was changed by the user."""
REQUEST_SIZE, RESPONSE_SIZE = "hubcache_request_bytes", "hubcache_response_bytes"
"""Metadata: bytes of a body that is streamed, so far."""

type Stream = Callable[[bytes], Iterable[bytes] | bytes]


def is_changed_by_user(noted: flow.Flow) -> bool:
    """Whether the user marked a flow, or wrote a comment."""
    own = noted.metadata
    return noted.marked not in ("", own.get(MARKER)) or noted.comment not in ("", own.get(COMMENT))


def counted(metadata: dict[str, object], name: str, stream: Stream | None = None) -> Stream:
    """Return a `stream` callable that counts the bytes that are sent in the flow's metadata.

    It does not refer to the flow: the flow's messages refer to it, and such a cycle is freed late.
    """
    sent = 0

    def count(data: bytes) -> Iterable[bytes] | bytes:
        nonlocal sent
        chunks = data if stream is None else stream(data)
        if not isinstance(chunks, bytes):
            chunks = tuple(chunks)
        sent += len(chunks) if isinstance(chunks, bytes) else sum(map(len, chunks))
        metadata[name] = sent
        return chunks

    return count


class FlowNotes:
    """Writes the notes. Other hooks call `answered` and so on; its own hooks complete a note when the flow ends.

    `markers` are names of emoji in mitmproxy's table.
    """

    def __init__(self, markers: Mapping[Marker, str] = STANDARD_NAMES) -> None:
        self._markers = markers
        self.tag_lifetime = 0.0
        """Seconds, as `Settings.tag_ttl`."""

    def answered(self, of: http.HTTPFlow, answer: Answer, host: str) -> None:
        """Note how the cache answered a request to the registry `host`."""
        self._write(of, flow_sentences.of_answer(answer, host, self.tag_lifetime))

    def forwarded(self, of: http.HTTPFlow, forward: Forward, request: Request) -> None:
        """Note that a request is passed on to its registry."""
        self._write(of, flow_sentences.of_forward(forward, request))

    def passed_through(self, of: http.HTTPFlow) -> None:
        """Note that a request is passed on to a host that is no registry."""
        self._write(of, flow_sentences.of_passed(of.request.host))

    def refused(self, of: http.HTTPFlow, reason: str) -> None:
        """Note why a request or a CONNECT was refused."""
        self._write(of, flow_sentences.of_refusal(reason))

    def broken_off(self, of: http.HTTPFlow, error: HubcacheError) -> None:
        """Note why a body was cut short."""
        self._fail(of, "upstream" if isinstance(error, RegistryError) else "cache", str(error))

    def count_response(self, of: http.HTTPFlow) -> None:
        """Count the bytes of an answer that is about to be streamed."""
        if of.response is not None:
            stream = of.response.stream
            of.response.stream = counted(of.metadata, RESPONSE_SIZE, stream if callable(stream) else None)

    # -- hooks ----------------------------------------------------------------------------------------------------

    def response(self, of: http.HTTPFlow) -> None:
        """Add the answer's size and duration."""
        if of.response is None or of.comment == "" or is_changed_by_user(of):
            return
        is_passed = of.marked in (self._markers[each] for each in (Marker.PRIVATE, Marker.PUSH, Marker.PASSED))
        if is_passed and of.response.status_code >= 500:
            self._write(of, flow_sentences.of_failed_upstream(of.request.host, of.response.status_code))
        elif is_passed:
            self._add(of, f", answered {of.response.status_code}")
        self._end(of)

    def error(self, of: http.HTTPFlow) -> None:
        """Note why a flow failed, if that is not noted yet, and how much of its body was sent."""
        if of.error is None or MARKER not in of.metadata or is_changed_by_user(of):
            return
        message = of.error.msg
        if message == of.error.KILLED_MESSAGE:
            self._write(of, flow_sentences.of_refusal(f"the connection was closed; {of.comment}"))
        elif of.marked != self._markers[Marker.ERROR]:
            is_by_client = "client" in message.lower()
            self._fail(of, *("client", "disconnected") if is_by_client else ("upstream", message))
        self._end(of)

    def tcp_start(self, of: tcp.TCPFlow) -> None:
        """Note where a tunnel goes."""
        address = of.server_conn.address
        self._write(of, flow_sentences.of_tunnel(address[0] if address else "an unknown host"))

    def tcp_end(self, of: tcp.TCPFlow) -> None:
        """Add how much a tunnel carried."""
        if not is_changed_by_user(of):
            sent = sum(len(each.content) for each in of.messages)
            self._add(of, f", {amounts.size(sent)} in {amounts.duration(time.time() - of.timestamp_start)}")

    def http_connect_error(self, of: http.HTTPFlow) -> None:
        """Complete the note on a CONNECT that was refused, and have mitmweb and the console list it: they list no
        other CONNECT."""
        if MARKER not in of.metadata:
            return
        self._end(of)
        # mitmproxy 12.3.1: View.add. Without it, a refused CONNECT is in the log only.
        add = getattr(ctx.master.addons.get("view"), "add", None)
        if add is not None:
            add([of])

    # -- parts ----------------------------------------------------------------------------------------------------

    def _write(self, of: flow.Flow, sentence: Sentence) -> None:
        of.marked = of.metadata[MARKER] = self._markers[sentence.marker]
        of.comment = of.metadata[COMMENT] = sentence.text

    def _add(self, of: flow.Flow, text: str) -> None:
        of.comment = of.metadata[COMMENT] = of.comment + text

    def _fail(self, of: http.HTTPFlow, fault: str, reason: str) -> None:
        if not is_changed_by_user(of):
            self._write(of, flow_sentences.of_failure(fault, reason, of.comment))

    def _end(self, of: http.HTTPFlow) -> None:
        """Add how much of the body was sent, and how long that took."""
        answer, sent, whole = of.response, 0, None
        if answer is not None:
            sent = int(of.metadata.get(RESPONSE_SIZE, len(answer.raw_content or b"")))
            length = answer.headers.get("content-length", "")
            answer.stream = True  # the callable would keep the source of the body
            whole = int(length) if of.error is not None and length.isdecimal() else None
        self._add(of, flow_sentences.ending(sent, whole, time.time() - of.request.timestamp_start))

"""Removes the oldest flows from mitmweb and from mitmproxy's console, which keep all of them.

A flow takes some 10 KB, and the bodies that are in memory are added to that.
"""

from collections import deque
from weakref import ref

from mitmproxy import ctx, dns, flow, http, tcp, udp

from .flow_notes import is_changed_by_user

_MAX_BODIES = 4 << 20
"""Bytes of the bodies that listed flows keep in memory. Few are larger than 64 KiB, but a manifest may have 4 MiB."""
_REMOVE = "view.flows.remove"


class FlowLimit:
    """Keeps at most about `most` flows that have ended (0: all), and removes the oldest ones in batches.

    Flows stay that are running or intercepted, that the user marked or commented on, and that were loaded from a file.
    Where flows are not listed (mitmdump), nothing is done.
    """

    def __init__(self) -> None:
        self.most = 0
        self._ended: deque[tuple[ref[flow.Flow], int]] = deque()
        """Flows in the order in which they ended, and the bytes of their bodies. A flow that the user deletes is
        freed."""
        self._bodies = 0

    # -- hooks ----------------------------------------------------------------------------------------------------

    def response(self, ended: http.HTTPFlow) -> None:
        """Note that a request was answered."""
        self._add(ended)

    def error(self, ended: http.HTTPFlow) -> None:
        """Note that a request failed."""
        self._add(ended)

    def http_connect_error(self, ended: http.HTTPFlow) -> None:
        """Note that a CONNECT was refused."""
        self._add(ended)

    def tcp_end(self, ended: tcp.TCPFlow) -> None:
        """Note that a connection ended."""
        self._add(ended)

    def tcp_error(self, ended: tcp.TCPFlow) -> None:
        """Note that a connection failed."""
        self._add(ended)

    def udp_end(self, ended: udp.UDPFlow) -> None:
        """Note that an exchange of datagrams ended."""
        self._add(ended)

    def udp_error(self, ended: udp.UDPFlow) -> None:
        """Note that an exchange of datagrams failed."""
        self._add(ended)

    def dns_response(self, ended: dns.DNSFlow) -> None:
        """Note that a DNS query was answered."""
        self._add(ended)

    def dns_error(self, ended: dns.DNSFlow) -> None:
        """Note that a DNS query failed."""
        self._add(ended)

    # -- parts ----------------------------------------------------------------------------------------------------

    def _add(self, ended: flow.Flow) -> None:
        if not self.most or not ended.live:  # one that was loaded from a file was never live
            return
        size = _body_size(ended)
        self._ended.append((ref(ended), size))
        self._bodies += size
        if len(self._ended) > self.most + max(1, self.most // 20) or self._bodies > _MAX_BODIES:
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        """Remove flows until no limit is exceeded, or all others must stay. The flow that has just ended stays."""
        commands = ctx.master.commands
        is_listed = _REMOVE in commands.commands
        for _ in range(len(self._ended) - 1):
            if len(self._ended) <= self.most and self._bodies <= _MAX_BODIES * 3 // 4:
                return
            entry = self._ended.popleft()
            oldest = entry[0]()
            if oldest is not None and is_listed and (oldest.live or oldest.intercepted or is_changed_by_user(oldest)):
                self._ended.append(entry)
                continue
            self._bodies -= entry[1]
            if oldest is not None and is_listed:
                commands.call(_REMOVE, [oldest])  # one at a time: for several it logs a line


def _body_size(ended: flow.Flow) -> int:
    if isinstance(ended, http.HTTPFlow):
        response = ended.response
        return len(ended.request.raw_content or b"") + len((response.raw_content if response else None) or b"")
    if isinstance(ended, tcp.TCPFlow | udp.UDPFlow):
        return sum(len(each.content) for each in ended.messages)
    return 0

"""The set-up of a direct connection: CONNECT and TLS hello at the proxy, TLS handshake at the proxy or a mirror."""

import logging
import re
from enum import Enum
from typing import NamedTuple

from mitmproxy.utils import human
from OpenSSL import SSL

from ..mitm.handover import HandoverState
from ..mitm.tls import TlsContexts
from ..mitm.tunnel import ANSWER, Connects

logger = logging.getLogger("hubcache")

_UNTRUSTED = re.compile("unknown ca|bad certificate|certificate unknown")
"""Alerts of clients that do not trust a certificate (RFC 8446 section 6.2), as OpenSSL words them."""
_HANDSHAKE, _RECORD_HEAD = 0x16, 5
_MAX_HELLO = 16 << 10
"""Bytes of a TLS hello."""


class Next(Enum):
    """What a connection does next."""

    RECEIVE = "wait for more bytes"
    CONTINUE = "go on with the bytes that are left"
    HAND_OVER = "let mitmproxy go on"


class Step(NamedTuple):
    """The result of one step: what to do next, bytes that are not read yet, and bytes to send."""

    next: Next
    received: bytes
    to_send: bytes = b""
    has_ended: bool = False
    """Whether the client can send nothing more."""


class TunnelSetup:
    """The set-up for one client at the address `client`; its results are kept in `state`."""

    def __init__(
        self, connects: Connects, tls_contexts: TlsContexts, state: HandoverState, client: tuple[str, int]
    ) -> None:
        self._connects = connects
        self._tls_contexts = tls_contexts
        self._state = state
        self._client = client

    @property
    def awaits_connect(self) -> bool:
        """Whether the head of a CONNECT request is expected next."""
        return self._state.address is None

    @property
    def is_complete(self) -> bool:
        """Whether requests are expected next."""
        return self._state.is_secure

    @property
    def is_shaking_hands(self) -> bool:
        """Whether the TLS handshake has begun and is not complete."""
        return self._state.tls is not None and not self._state.is_secure

    def advance(self, received: bytes) -> Step:
        """Take the next step with all the bytes that were received and not read."""
        if self.awaits_connect:
            return self._connect(received)
        return self._handshake(received) if self._state.tls is not None else self._hello(received)

    def _connect(self, received: bytes) -> Step:
        found = self._connects.parse(received)
        if found is None:
            return Step(Next.HAND_OVER, received)
        self._state.address, length = found
        return Step(Next.CONTINUE, received[length:], ANSWER)

    def _hello(self, received: bytes) -> Step:
        assert self._state.address is not None
        host = self._state.address[0]
        length = _RECORD_HEAD + int.from_bytes(received[3:_RECORD_HEAD])
        if received[0] != _HANDSHAKE or length > _MAX_HELLO:
            return Step(Next.HAND_OVER, received)
        if len(received) < max(length, _RECORD_HEAD + 1):
            return Step(Next.RECEIVE, received)
        has_name = host.encode() in received  # the server name that the client asks for
        tls = self._tls_contexts.connection(host) if has_name else None
        if tls is None:
            return Step(Next.HAND_OVER, received)
        self._state.tls = tls
        return Step(Next.CONTINUE, received)

    def _handshake(self, received: bytes) -> Step:
        tls = self._state.tls
        assert tls is not None
        has_ended = False
        try:
            self._state.is_secure = tls.handshake(received)
        except SSL.Error as error:
            self.log_distrust(error.args[0][-1][-1] if error.args and error.args[0] else "the connection broke off")
            has_ended = True
        to_send = tls.pending_ciphertext()
        if not self._state.is_secure:
            return Step(Next.RECEIVE, b"", to_send, has_ended)
        content, has_ended = tls.decrypt(b"")
        return Step(Next.CONTINUE, content, to_send, has_ended)

    def log_distrust(self, reason: str) -> None:
        """Log the usual reason for a failed handshake, which clients often do not show to their users."""
        verb = "does not" if _UNTRUSTED.search(reason) else "may not"
        client = human.format_address(self._client)
        logger.warning("hubcache: %s %s trust the %s: %s", client, verb, self._certificate_name(), reason)

    def _certificate_name(self) -> str:
        assert self._state.address is not None
        return f"proxy's certificate for {self._state.address[0]}"


class MirrorSetup(TunnelSetup):
    """The set-up at a mirror with a certificate, which serves TLS and plain HTTP."""

    _is_plain = False

    @property
    def awaits_connect(self) -> bool:
        return False

    @property
    def is_complete(self) -> bool:
        return self._is_plain or self._state.is_secure

    def advance(self, received: bytes) -> Step:
        if self._state.tls is None:
            self._is_plain = received[0] != _HANDSHAKE
            if self._is_plain:
                return Step(Next.CONTINUE, received)
            self._state.tls = self._tls_contexts.mirror_connection()
        return self._handshake(received)

    def _certificate_name(self) -> str:
        return "mirror's certificate"

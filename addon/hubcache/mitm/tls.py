"""TLS with clients: one OpenSSL context for each of our hosts, with its leaf certificate in it.

mitmproxy looks for the certificate anew for each connection, and converts it and its key twice. It still makes the
certificates, and the whole connection where the user has set an option that says how.
"""

import contextlib
from collections.abc import Callable
from functools import wraps
from typing import Any

from mitmproxy import tls
from mitmproxy.certs import CertStoreEntry
from mitmproxy.net import tls as net_tls
from mitmproxy.options import Options
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.tls import HTTP1_ALPNS
from OpenSSL import SSL
from OpenSSL._util import ffi, lib, no_zero_allocator

from .interception import Interception

_OPTIONS = (
    *("add_upstream_certs_to_client_chain", "ciphers_client", "request_client_cert", "tls_ecdh_curve_client"),
    *("tls_version_client_max", "tls_version_client_min"),
)
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: what has forward secrecy and no known weakness."""
_SUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""Of TLS 1.3 all, the fastest first: curl would take 256 bits before 128. `openssl speed`: 5.3 and 6.2 GB/s."""
_RECORD, _OVERHEAD = 16 << 10, 64
"""Bytes of content in a TLS record, and at most as many beside it."""
_WAITING = 2 << 10
"""Bytes of what usually waits to be sent before: two tickets."""
_PIECE = 4 * _RECORD
"""Bytes that are encrypted at once: with their copies they fit into a processor's own cache."""


def translated[**P](send: Callable[P, None]) -> Callable[P, None]:
    """Has what sends by a connection raise `ConnectionResetError` where that raises `SSL.Error`."""

    @wraps(send)
    def translating(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            send(*args, **kwargs)
        except SSL.Error as error:
            raise ConnectionResetError("the client ended TLS, or left") from error

    return translating


class Connection(SSL.Connection):
    """Encrypts a chunk of a body piece by piece into one buffer, while each is in the processor's cache.

    mitmproxy has pyOpenSSL encrypt all of it, and then takes it out 64 KiB at a time, at the cost of a copy and a walk
    through its layers for each. What does this has no public name in pyOpenSSL.
    """

    _encrypted: memoryview | None = None
    _waits = False
    _is_attached = False
    _sealed = b""
    """What came while it was."""

    def do_handshake(self) -> None:
        """What TLS 1.3 has to say after the handshake (tickets) waits for the first answer: one packet less for each
        of the connections that clients make for every request. No client waits for it."""
        super().do_handshake()
        self._waits = self.get_protocol_version() == SSL.TLS1_3_VERSION

    def shake(self, data: bytes) -> bool:
        """Go on with the handshake; tells whether it is complete. Raises `SSL.Error`."""
        self.bio_write(data)
        try:
            self.do_handshake()
        except SSL.WantReadError:
            return False
        return True

    def waiting(self) -> bytes:
        """What waits to be sent."""
        waiting = b""
        with contextlib.suppress(SSL.WantReadError):
            while True:
                waiting += self.bio_read(_PIECE)
        return waiting

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """What is inside of what came, and whether nothing comes after it: TLS was ended, or is none."""
        content = b""
        if self._is_attached:
            self._sealed += data
            return content, False
        try:
            if data:
                self.bio_write(data)
            while True:
                content += self.recv(_RECORD)
        except SSL.WantReadError:
            return content, False
        except SSL.Error:
            return content, True

    def encrypt(self, data: bytes | memoryview) -> memoryview:
        """The TLS records of `data`, after whatever else waited to be sent; raises `SSL.Error`."""
        self._waits = False
        length = len(data)
        room = _WAITING + length + _OVERHEAD * (2 + length // _RECORD)
        encrypted = no_zero_allocator("char[]", room)
        taken = given = 0
        with ffi.from_buffer(data) as plain:
            while taken < length:
                count = lib.SSL_write(self._ssl, plain + taken, min(_PIECE, length - taken))
                if count <= 0:
                    self._raise_ssl_error(self._ssl, count)
                taken += count
                given += max(0, lib.BIO_read(self._from_ssl, encrypted + given, room - given))
        if given < room:
            return memoryview(ffi.buffer(encrypted, given))
        more = bytearray(ffi.buffer(encrypted, given))
        with contextlib.suppress(SSL.WantReadError):
            while True:
                more += super().bio_read(_PIECE)
        return memoryview(more)

    def attach(self, descriptor: int) -> None:
        """Have `put` write to a socket. What comes is not decrypted before `detach`, and no other method may be called.
        To be called after `encrypt`, which leaves nothing that waits to be sent."""
        assert not self._waits
        lib.SSL_set_fd(self._ssl, descriptor)  # for both directions, and it frees what was there
        self._into_ssl = self._from_ssl = None
        self._is_attached = True

    def put(self, data: bytes | memoryview) -> bool:
        """Send all of a chunk. False where the socket takes no more for now: this is to be called again with the same
        chunk, or a copy of it. Raises `SSL.Error` when the client left."""
        with ffi.from_buffer(data) as plain:
            count = lib.SSL_write(self._ssl, plain, len(data))
        if count > 0:
            return True
        try:
            self._raise_ssl_error(self._ssl, count)
        except SSL.WantWriteError:
            pass
        finally:
            lib.ERR_clear_error()  # what a socket said would be there for the next connection, pyOpenSSL leaves it
        return False

    def detach(self) -> None:
        """Go on in memory, as pyOpenSSL does from the start."""
        self._into_ssl, self._from_ssl = (lib.BIO_new(lib.BIO_s_mem()) for _ in range(2))
        lib.SSL_set_bio(self._ssl, self._into_ssl, self._from_ssl)
        self._is_attached = False
        sealed, self._sealed = self._sealed, b""
        if sealed:
            self.bio_write(sealed)

    def sendall(self, buf: Any, flags: int = 0) -> int:
        self._waits = False
        if len(buf) <= _RECORD or self._encrypted is not None:
            return super().sendall(buf, flags)
        self._encrypted = self.encrypt(buf)
        return len(buf)

    def bio_read(self, bufsiz: int) -> Any:
        if self._waits:
            raise SSL.WantReadError
        encrypted, self._encrypted = self._encrypted, None
        return encrypted or super().bio_read(bufsiz)


class Handshakes:
    """Connections for clients that ask for the hosts of `interception`; to be made anew when an option changes.

    `leaf` finds or makes the certificate for what a client asks for.
    """

    def __init__(self, interception: Interception, options: Options, leaf: Callable[[Context], CertStoreEntry]) -> None:
        self._interception = interception
        self._leaf = leaf
        self._contexts: dict[str, SSL.Context] = {}
        self._permitted = (
            all(getattr(options, name) == options.default(name) for name in _OPTIONS)
            and not (options.http2 or options.upstream_cert)
            and net_tls.log_master_secret is None
        )

    def connection(self, start: tls.TlsData) -> Connection | None:
        """A connection that is ready for the client's hello; None where mitmproxy shall make it."""
        client, address = start.context.client, start.context.server.address
        if not self._permitted or start.is_dtls or client.cipher_list or address is None or client.sni != address[0]:
            return None
        context = self._contexts.get(address[0])
        if context is None:
            if not self._interception.has(*address) or not address[0].islower():  # of all spellings, one is kept
                return None
            self._contexts[address[0]] = _context(self._leaf(start.context))
        return self.another(address[0])

    def another(self, host: str) -> Connection | None:
        """A connection for a host for which there was one before; its client asks for that name."""
        context = self._contexts.get(host)
        if context is None:
            return None
        made = Connection(context)
        made.set_accept_state()
        return made


def _context(entry: CertStoreEntry) -> SSL.Context:
    made = SSL.Context(SSL.TLS_SERVER_METHOD)
    lib.SSL_CTX_clear_mode(made._context, lib.SSL_MODE_ENABLE_PARTIAL_WRITE)  # else each record is a call of its own
    made.set_min_proto_version(SSL.TLS1_2_VERSION)
    made.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_COMPRESSION)
    made.set_cipher_list(_CIPHERS)
    made.set_tls13_ciphersuites(_SUITES)
    made.set_alpn_select_callback(_select)
    made.use_certificate(entry.cert.to_cryptography())
    made.use_privatekey(entry.privatekey)
    if entry.chain_file is not None:
        made.load_verify_locations(str(entry.chain_file))
    elif len(entry.chain_certs) > 1:
        for one in entry.chain_certs:
            made.add_extra_chain_cert(one.to_cryptography())
    return made


def _select(_: SSL.Connection, offered: list[bytes]) -> Any:
    return next((protocol for protocol in offered if protocol in HTTP1_ALPNS), SSL.NO_OVERLAPPING_PROTOCOLS)

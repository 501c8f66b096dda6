"""TLS with clients: one OpenSSL context for each host of a registry, which has the host's leaf certificate.

mitmproxy looks the certificate up for each connection, and converts it and its key twice. mitmproxy still makes the
certificates, and also the connection where an option of the user concerns TLS.
"""

import contextlib
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from cachetools import LRUCache
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from mitmproxy import tls
from mitmproxy.certs import CertStoreEntry
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.tls import HTTP1_ALPNS
from OpenSSL import SSL
from OpenSSL._util import ffi, lib, no_zero_allocator

from ..oci.errors import ConfigError
from .interception import Interception

# OpenSSL._util and the attributes of SSL.Connection with an underscore were read in pyOpenSSL 26.4.0, the rest in
# mitmproxy 12.3.1. Without them mitmproxy makes all connections, and direct connections are not possible.

_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""Cipher suites of TLS 1.2: those with forward secrecy and no known weakness."""
_SUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""All cipher suites of TLS 1.3, the fastest first: curl prefers 256 bits to 128. `openssl speed`: 5.3 and 6.2 GB/s."""
_RECORD, _OVERHEAD = 16 << 10, 64
"""Bytes of content in a TLS record, and at most as many around it."""
_PENDING = 2 << 10
"""Bytes that usually wait to be sent before a body: two session tickets."""
_PIECE = 4 * _RECORD
"""Bytes encrypted at a time: with their copies they fit into a processor's own cache."""

_PRIVATE_KEY = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.+?-----END \1-----", re.DOTALL)

MAX_CONTEXTS = 256
"""Hosts whose contexts are kept: below the domain of a pattern of registries, clients choose the names."""


def raises_connection_reset[**P](send: Callable[P, None]) -> Callable[P, None]:
    """Make a sending function raise `ConnectionResetError` in place of `SSL.Error`."""

    @wraps(send)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            send(*args, **kwargs)
        except SSL.Error as error:
            raise ConnectionResetError("the client ended TLS or disconnected") from error

    return wrapper


class TlsConnection(SSL.Connection):
    """A TLS connection that encrypts a chunk of a body piece by piece, while each piece is in the processor's cache.

    mitmproxy has pyOpenSSL encrypt the whole chunk, and then reads the result 64 KiB at a time; each piece costs a copy
    and a pass through mitmproxy's layers. pyOpenSSL has no public name for encryption into a buffer.
    """

    _encrypted: memoryview | None = None
    _holds_back = False
    """Whether session tickets wait for the first answer."""
    _is_attached = False
    _ciphertext = b""
    """Ciphertext received while attached to the socket."""

    def do_handshake(self) -> None:
        """Do the handshake as pyOpenSSL does, but hold back session tickets of TLS 1.3 until the first answer.

        This saves one packet for each connection, and clients open one for every request. Clients do not wait for
        tickets.
        """
        super().do_handshake()
        self._holds_back = self.get_protocol_version() == SSL.TLS1_3_VERSION

    def handshake(self, data: bytes) -> bool:
        """Continue the handshake; returns whether it is complete. Raises `SSL.Error`."""
        self.bio_write(data)
        try:
            self.do_handshake()
        except SSL.WantReadError:
            return False
        return True

    def pending_ciphertext(self) -> bytes:
        """Return the bytes that wait to be sent."""
        pending = b""
        with contextlib.suppress(SSL.WantReadError):
            while True:
                pending += self.bio_read(_PIECE)
        return pending

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """Decrypt received bytes; also return whether nothing can follow because TLS has ended or failed."""
        content = b""
        if self._is_attached:
            self._ciphertext += data
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
        """Return the TLS records of `data`, after all else that waits to be sent; raises `SSL.Error`."""
        self._holds_back = False
        length = len(data)
        size = _PENDING + length + _OVERHEAD * (2 + length // _RECORD)
        encrypted = no_zero_allocator("char[]", size)
        taken = given = 0
        with ffi.from_buffer(data) as plain:
            while taken < length:
                count = lib.SSL_write(self._ssl, plain + taken, min(_PIECE, length - taken))
                if count <= 0:
                    self._raise_ssl_error(self._ssl, count)
                taken += count
                given += max(0, lib.BIO_read(self._from_ssl, encrypted + given, size - given))
        if given < size:
            return memoryview(ffi.buffer(encrypted, given))
        more = bytearray(ffi.buffer(encrypted, given))
        with contextlib.suppress(SSL.WantReadError):
            while True:
                more += super().bio_read(_PIECE)
        return memoryview(more)

    def attach_socket(self, descriptor: int) -> None:
        """Have `write_to_socket` write to a socket. Until `detach_socket`, received bytes are kept undecrypted, and no
        other method may be called. To be called after `encrypt`, which leaves nothing that waits to be sent."""
        assert not self._holds_back
        lib.SSL_set_fd(self._ssl, descriptor)  # for both directions; it frees the buffers in memory
        self._into_ssl = self._from_ssl = None
        self._is_attached = True

    def write_to_socket(self, data: bytes | memoryview) -> bool:
        """Send a whole chunk. False where the socket takes no more at present: call this again with the same chunk, or
        a copy of it. Raises `SSL.Error` when the client disconnected."""
        with ffi.from_buffer(data) as plain:
            count = lib.SSL_write(self._ssl, plain, len(data))
        if count > 0:
            return True
        try:
            self._raise_ssl_error(self._ssl, count)
        except SSL.WantWriteError:
            pass
        finally:
            lib.ERR_clear_error()  # pyOpenSSL leaves a socket's error in the queue, where the next connection finds it
        return False

    def detach_socket(self) -> None:
        """Encrypt and decrypt in memory again, as before `attach_socket`."""
        self._into_ssl, self._from_ssl = (lib.BIO_new(lib.BIO_s_mem()) for _ in range(2))
        lib.SSL_set_bio(self._ssl, self._into_ssl, self._from_ssl)
        self._is_attached = False
        ciphertext, self._ciphertext = self._ciphertext, b""
        if ciphertext:
            self.bio_write(ciphertext)

    def sendall(self, buf: Any, flags: int = 0) -> int:
        """Send as pyOpenSSL does, but encrypt more than one record at once, for the next `bio_read`."""
        self._holds_back = False
        if len(buf) <= _RECORD or self._encrypted is not None:
            return super().sendall(buf, flags)
        self._encrypted = self.encrypt(buf)
        return len(buf)

    def bio_read(self, bufsiz: int) -> Any:
        """Read as pyOpenSSL does, but return nothing while session tickets are held back."""
        if self._holds_back:
            raise SSL.WantReadError
        encrypted, self._encrypted = self._encrypted, None
        return encrypted or super().bio_read(bufsiz)


class TlsContexts:
    """OpenSSL contexts for the hosts of `interception`. `leaf` finds or makes the certificate for a connection."""

    def __init__(
        self,
        interception: Interception,
        leaf: Callable[[Context], CertStoreEntry],
        mirror: SSL.Context | None = None,
    ) -> None:
        self._interception = interception
        self._leaf = leaf
        self._mirror = mirror
        self._contexts: LRUCache[str, SSL.Context] = LRUCache(MAX_CONTEXTS)

    def connection_for_hello(self, start: tls.TlsData) -> TlsConnection | None:
        """Return a connection that is ready for the client's hello; None where mitmproxy is to make it."""
        client, address = start.context.client, start.context.server.address
        if start.is_dtls or client.cipher_list or address is None or client.sni != address[0]:
            return None
        if address[0] not in self._contexts:
            if not self._interception.has(*address) or not address[0].islower():  # contexts are kept for one spelling
                return None
            self._contexts[address[0]] = _context(self._leaf(start.context))
        return self.connection(address[0])

    def connection(self, host: str) -> TlsConnection | None:
        """Return a connection to a client whose hello has this name; None if it is the first for this host."""
        return _accepting(self._contexts.get(host))

    @property
    def serves_mirror(self) -> bool:
        """Whether mirrors have a certificate."""
        return self._mirror is not None

    def mirror_connection(self) -> TlsConnection | None:
        """Return a connection to a client of a mirror; None without `hubcache_mirror_certificate`."""
        return _accepting(self._mirror)


def load_mirror_certificate(path: Path) -> SSL.Context:
    """Return a context with the key and the certificate chain in a PEM file; raises `ConfigError`."""
    made = _new_context()
    expected = f"hubcache_mirror_certificate: {path} is not a PEM file with a certificate chain and its private key"
    try:
        # Not `use_privatekey_file`: it asks for a passphrase at the terminal, and waits.
        key = _PRIVATE_KEY.search(path.read_bytes())
        if key is None:
            raise ConfigError(expected)
        made.use_certificate_chain_file(str(path))
        made.use_privatekey(load_pem_private_key(key[0], None))  # type: ignore[arg-type]
        made.check_privatekey()
    except OSError as error:
        raise ConfigError(f"hubcache_mirror_certificate: {path} cannot be read: {error.strerror}") from error
    except TypeError as error:
        raise ConfigError(f"{expected}, without a passphrase") from error
    except (SSL.Error, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(expected) from error
    return made


def _accepting(context: SSL.Context | None) -> TlsConnection | None:
    if context is None:
        return None
    made = TlsConnection(context)
    made.set_accept_state()
    return made


def _context(entry: CertStoreEntry) -> SSL.Context:
    made = _new_context()
    made.use_certificate(entry.cert.to_cryptography())
    made.use_privatekey(entry.privatekey)
    if entry.chain_file is not None:
        made.load_verify_locations(str(entry.chain_file))
    elif len(entry.chain_certs) > 1:
        for one in entry.chain_certs:
            made.add_extra_chain_cert(one.to_cryptography())
    return made


def _new_context() -> SSL.Context:
    """Return a context without a certificate."""
    made = SSL.Context(SSL.TLS_SERVER_METHOD)
    lib.SSL_CTX_clear_mode(made._context, lib.SSL_MODE_ENABLE_PARTIAL_WRITE)  # else each record needs a call
    made.set_min_proto_version(SSL.TLS1_2_VERSION)
    made.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_COMPRESSION)
    made.set_cipher_list(_CIPHERS)
    made.set_tls13_ciphersuites(_SUITES)
    made.set_alpn_select_callback(_select_protocol)
    return made


def _select_protocol(_: SSL.Connection, offered: list[bytes]) -> Any:
    return next((protocol for protocol in offered if protocol in HTTP1_ALPNS), SSL.NO_OVERLAPPING_PROTOCOLS)

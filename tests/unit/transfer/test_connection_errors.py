"""The descriptions of connection errors, tested with real failures."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from hubcache.transfer.connection_errors import describe
from hubcache.transfer.session import open_download_session, open_session
from support.ports import free_port
from support.standin import tls as standin_tls
from yarl import URL


async def failure(url: str) -> str:
    """Return the description of the error of a request, which is the same for a download."""
    tls = ssl.create_default_context()
    downloads = open_download_session(tls, "test")
    descriptions = set()
    async with open_session(tls, "test") as session:
        for request in (session.get, downloads.get):
            with pytest.raises((aiohttp.ClientError, TimeoutError)) as caught:
                await request(URL(url), headers={})
            assert isinstance(caught.value, aiohttp.ClientError | TimeoutError)
            descriptions.add(describe(caught.value))
    downloads.close()
    assert len(descriptions) == 1
    return descriptions.pop()


async def failure_at(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    tls: ssl.SSLContext | None = None,
    scheme: str = "https",
) -> str:
    server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=tls)
    async with server:
        return await failure(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v2/")


async def disconnect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1000)
    writer.close()


async def speak_plain_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


async def speak_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"nonsense\r\n\r\n")
    writer.close()


async def test_untrusted_certificate_names_the_option_for_a_ca(tmp_path: Path) -> None:
    _, tls = standin_tls.make(tmp_path, ["127.0.0.1"])
    text = await failure_at(disconnect, tls)
    assert text.startswith("its certificate is not trusted (")
    assert "set ssl_verify_upstream_trusted_ca to a PEM file" in text


def test_expired_certificate_points_at_the_clock() -> None:
    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = 10, "certificate has expired"
    text = describe(aiohttp.ClientConnectorCertificateError(_key(), error))
    assert text == "its certificate is not trusted (certificate has expired); check this machine's clock"


def test_certificate_of_another_host_advises_no_ca() -> None:
    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = 62, "Hostname mismatch, certificate is not valid for 'a'."
    text = describe(aiohttp.ClientConnectorCertificateError(_key(), error))
    assert text == "its certificate is not trusted (Hostname mismatch, certificate is not valid for 'a')"


async def test_unknown_name_points_at_dns() -> None:
    text = await failure("https://registry.invalid/v2/")
    assert text.startswith("its name cannot be resolved (")
    assert text.endswith("; check the name and this machine's DNS settings")


async def test_closed_port_is_a_refused_connection() -> None:
    assert (await failure(f"http://127.0.0.1:{free_port()}/")).startswith("connection refused; nothing listens")


async def test_plain_http_at_a_tls_port_names_the_option() -> None:
    text = await failure_at(speak_plain_http)
    assert text.startswith("TLS failed (")
    assert "set hubcache_registries=HOST=http://HOST:PORT" in text


def test_error_of_tls_after_the_handshake_is_described_as_one() -> None:
    error = aiohttp.ClientOSError(1, "")
    error.__cause__ = ssl.SSLError(1, "TLSV13_ALERT_CERTIFICATE_REQUIRED")
    assert describe(error) == "TLS failed (tlsv13 alert certificate required)"


async def test_connection_closed_without_a_response_is_described() -> None:
    assert await failure_at(disconnect, scheme="http") == "it closed the connection without a response"


async def test_response_that_is_not_http_is_described() -> None:
    assert await failure_at(speak_nonsense, scheme="http") == "its response is not valid HTTP"


def test_time_out_of_a_connection_differs_from_that_of_a_response() -> None:
    assert describe(aiohttp.ConnectionTimeoutError()).startswith("time-out of the connection; a firewall may drop")
    assert describe(aiohttp.SocketTimeoutError()) == "time-out; no response came"


def _key() -> aiohttp.client_reqrep.ConnectionKey:
    return aiohttp.client_reqrep.ConnectionKey("a", 443, True, True, None, None, None)

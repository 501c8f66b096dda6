"""CONNECT is answered, and HTTP begun at a mirror, without a flow of mitmproxy, and only where mitmproxy would do the
same."""

import base64
import json
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubcache.mitm.interception import Interception
from hubcache.mitm.tunnel import Connects, Tunnel
from hubcache.oci.registry import Registry
from mitmproxy import connection
from mitmproxy.options import Options
from mitmproxy.proxy import context, events, layer
from mitmproxy.proxy.layers import HttpLayer, modes
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode
from support.http_client import TIMEOUT, Exchange, head
from support.ports import free_port
from support.program import HUB_HOST, LISTENERS, Program, RegistryClient, running_program
from support.standin import Hub

REGISTRIES = Interception([Registry.parse(HUB_HOST), Registry.parse("[::1]:5001")])
ORDINARY = b"CONNECT registry-1.docker.io:443 HTTP/1.1\r\nHost: registry-1.docker.io:443\r\nUser-Agent: docker\r\n\r\n"
HELLO = b"\x16\x03\x01"
MIRROR = f"reverse:https://{HUB_HOST}@5000"
GET = b"GET /v2/ HTTP/1.1\r\n"


def first_layer(*pieces: bytes, mode: str = "regular") -> layer.Layer | None:
    """Return the layer for a new connection on which these bytes were received."""
    client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=1.0)
    client.state = connection.ConnectionState.OPEN
    client.proxy_mode = ProxyMode.parse(mode)
    made = context.Context(client, Options())
    if isinstance(client.proxy_mode, ReverseMode):
        modes.ReverseProxy(made)
        made.server.address = client.proxy_mode.address
    else:
        modes.HttpProxy(made)
    question = layer.NextLayer(made)
    question.events = [events.Start(), *(events.DataReceived(client, piece) for piece in pieces)]
    return Connects(REGISTRIES).first_layer(question)


@pytest.mark.parametrize(
    "pieces",
    [
        (ORDINARY,),
        (ORDINARY[:20], ORDINARY[20:]),
        (ORDINARY + HELLO,),
        (b"CONNECT REGISTRY-1.docker.io:443 HTTP/1.0\r\n\r\n",),
        (b"CONNECT auth.docker.io:443 HTTP/1.1\r\nProxy-Authorization: Basic eA==\r\n\r\n",),
        (b"CONNECT [::1]:5001 HTTP/1.1\r\nHost: [::1]:5001\r\n\r\n",),
    ],
)
def test_connect_to_a_registry_is_answered_here(pieces: tuple[bytes, ...]) -> None:
    assert isinstance(first_layer(*pieces), Tunnel)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        ORDINARY[:-2],
        ORDINARY.replace(b":443 ", b":444 "),
        ORDINARY.replace(b"docker.io", b"example.com"),
        ORDINARY.replace(b"CONNECT", b"GET"),
        ORDINARY.replace(b"User-Agent:", b"User Agent:"),
        ORDINARY.replace(b"User-Agent:", b"User-Agent"),
        ORDINARY.replace(b"User-Agent", b"Content-Length"),
        ORDINARY.replace(b"User-Agent", b"transfer-encoding"),
        ORDINARY.replace(b"\r\nHost", b"\nHost"),
        ORDINARY.replace(b"HTTP/1.1", b"HTTP/2"),
        ORDINARY.replace(b":443 HTTP", b" HTTP"),
        HELLO,
        b"CONNECT registry-1.docker.io:443 HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
)
def test_everything_else_is_left_to_mitmproxy(data: bytes) -> None:
    assert first_layer(data) is None


@pytest.mark.parametrize("data", [GET, b"G", b"anything: the answer is an HTTP error"])
def test_mirror_begins_with_http(data: bytes) -> None:
    assert isinstance(first_layer(data, mode=MIRROR), HttpLayer)


@pytest.mark.parametrize("data", [b"", HELLO])
def test_mirror_leaves_tls_to_mitmproxy(data: bytes) -> None:
    assert first_layer(data, mode=MIRROR) is None


def test_layer_inside_of_another_is_left_to_mitmproxy() -> None:
    """Such as a CONNECT inside of a tunnel."""
    client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=1.0)
    made = context.Context(client, Options())
    modes.HttpProxy(made)
    layer.NextLayer(made)
    made.layers.append(made.layers[0])
    question = layer.NextLayer(made)
    question.events = [events.DataReceived(client, ORDINARY)]
    assert Connects(REGISTRIES).first_layer(question) is None


# -- the program


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with running_program(hubcache_tag_ttl="600") as running:
        yield running


@pytest.fixture
def client(program: Program) -> Iterator[RegistryClient]:
    program.reset()
    yield program.client("proxy")
    program.assert_no_errors()


def test_tunnel_may_carry_plain_http(client: RegistryClient) -> None:
    """As in mitmproxy, it is no request to the registry, which speaks TLS at this port, and gets no content."""
    with client.program.tunnel(HUB_HOST, 443) as plain:
        plain.sendall(head("GET", "/v2/", {"Host": HUB_HOST, "Connection": "close"}))
        assert Exchange(plain, "GET").status >= 400
    assert client.hub.count() == 0


def test_client_may_disconnect_from_an_empty_tunnel(client: RegistryClient) -> None:
    client.program.tunnel(HUB_HOST, 443).close()
    assert client.request("GET", "/v2/").status == 401


def test_hello_may_follow_the_connect_at_once(client: RegistryClient) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    inside = client.program.ssl_context().wrap_bio(incoming, outgoing, server_hostname=HUB_HOST)
    with pytest.raises(ssl.SSLWantReadError):
        inside.do_handshake()
    with socket.create_connection(("127.0.0.1", client.program.proxy), TIMEOUT) as tunnel:
        tunnel.sendall(ORDINARY + outgoing.read())
        received = b""
        while b"\r\n\r\n" not in received:
            received += tunnel.recv(4096)
        answer, _, rest = received.partition(b"\r\n\r\n")
        assert answer == b"HTTP/1.1 200 Connection established"
        incoming.write(rest)
        while True:
            try:
                inside.do_handshake()
                break
            except ssl.SSLWantReadError:
                incoming.write(tunnel.recv(4096))
        assert inside.selected_alpn_protocol() is None
        assert inside.version() == "TLSv1.3"


def test_script_that_listens_sees_a_connect(hub: Hub, tmp_path: Path) -> None:
    script = tmp_path / "listener.py"
    script.write_text("def http_connect(flow):\n    print('script saw', flow.request.pretty_host, flush=True)\n")
    with running_program(hub, arguments=["-s", str(script)]) as program:
        assert program.client("proxy").request("GET", "/v2/").status == 401
        assert f"script saw {HUB_HOST}" in program.log


def test_proxyauth_is_checked_at_the_connect(hub: Hub) -> None:
    password = base64.b64encode(b"carol:pass").decode()
    with running_program(hub, proxyauth="carol:pass") as program:
        for headers, status in (({}, b"407"), ({"Proxy-Authorization": f"Basic {password}"}, b"200")):
            with socket.create_connection(("127.0.0.1", program.proxy), TIMEOUT) as client:
                client.sendall(head("CONNECT", f"{HUB_HOST}:443", headers))
                assert client.recv(4096).split()[1] == status


def test_flows_are_printed_by_mitmdump(client: RegistryClient) -> None:
    client.request("GET", "/v2/printed/manifests/1")
    client.program.wait_for_log(f"GET https://{HUB_HOST}/v2/printed/manifests/1")


def test_flows_are_shown_by_mitmweb(hub: Hub) -> None:
    web = free_port()
    arguments = ["--no-web-open-browser", "--set", f"web_port={web}", "--set", "web_password=secret"]
    with running_program(hub, name="mitmweb", arguments=arguments) as program:
        for name in LISTENERS:
            assert program.client(name).request("GET", f"/v2/{name}/manifests/1").status in (401, 404)
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/flows?token=secret", timeout=TIMEOUT) as answer:
            shown = json.load(answer)
        assert [flow["request"]["path"] for flow in shown] == [f"/v2/{name}/manifests/1" for name in LISTENERS]
        assert [flow["client_conn"]["tls_version"] for flow in shown] == ["TLSv1.3", None]
        assert {flow["request"]["pretty_host"] for flow in shown} == {HUB_HOST}

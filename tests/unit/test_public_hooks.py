"""The hooks that need no internals: the server name of a client, and what is impossible without internals."""

from pathlib import Path

import pytest
from hubcache.oci.errors import ConfigError
from hubcache.oci.registry import HUB_HOST
from hubcache.public_hooks import PublicConnectionHooks
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.tls import ClientHelloData
from support.mitm import taddons
from support.tls_pair import mitmproxy_fixture, start

known = mitmproxy_fixture()


@pytest.mark.parametrize(
    ("mode", "sent", "name"),
    [
        ("regular", None, HUB_HOST),
        ("regular", "other.example", "other.example"),
        ("reverse:https://registry-1.docker.io@5000", None, HUB_HOST),
        ("reverse:https://registry-1.docker.io@5000", "mirror.example", HUB_HOST),
    ],
)
def test_server_name_of_a_mirrors_client_is_not_sent_to_the_registry(
    known: taddons.context, mode: str, sent: str | None, name: str
) -> None:
    context = start(known, sent).context
    context.client.proxy_mode = ProxyMode.parse(mode)
    PublicConnectionHooks().tls_clienthello(ClientHelloData(context, None))  # type: ignore[arg-type]
    assert context.client.sni == name


def test_mirror_certificate_is_refused_because_it_needs_internals() -> None:
    PublicConnectionHooks().use_mirror_certificate(None)
    with pytest.raises(ConfigError, match="hubcache_mirror_certificate: not possible with these versions"):
        PublicConnectionHooks().use_mirror_certificate(Path("mirror.pem"))

"""Start-up: options of this program and of mitmproxy, at start and later."""

import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest
from hubcache import startup
from hubcache.mitm import mitmproxy_options
from hubcache.oci.account import Account
from hubcache.oci.errors import ConfigError
from hubcache.oci.registry import HUB_HOST
from hubcache.startup import Hubcache
from mitmproxy import exceptions
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.addons.upstream_auth import UpstreamAuth
from support.addon import REPO, AddonHarness, harness_fixture
from support.mitm import taddons
from support.standin import Hub

harness = harness_fixture()


async def test_defaults_that_a_registry_cache_needs_are_set(harness: AddonHarness) -> None:
    options = harness.context.options
    assert options.connection_strategy == "lazy"
    assert not options.upstream_cert
    assert not options.http2
    assert options.mode == ["regular@8080", f"reverse:https://{HUB_HOST}@5000"]
    assert len(options.allow_hosts) == 3


async def test_values_that_the_user_set_are_kept(hub: Hub, tmp_path: Path) -> None:
    addon = Hubcache()
    with taddons.context(Proxyserver(), NextLayer(), TlsConfig()) as context:
        context.options.update(connection_strategy="eager", mode=["regular@1234"], allow_hosts=["example"])
        context.options.update(confdir=str(tmp_path / "ca"))
        # "eager" and others are mitmproxy's defaults: values that equal them cannot be distinguished from unset ones.
        context.master.addons.add(addon)
        assert context.options.mode == ["regular@1234"]
        assert context.options.allow_hosts == ["example"]


async def test_clients_cannot_connect_through_the_proxy_to_the_port_of_peers(tmp_path: Path) -> None:
    addon = Hubcache()
    with taddons.context(Proxyserver(), NextLayer(), TlsConfig(), UpstreamAuth()) as context:
        context.options.update(confdir=str(tmp_path / "ca"))
        context.master.addons.add(addon)
        assert 5003 not in addon._access._destinations._ports
        context.options.update(hubcache_bucket="s3://name", hubcache_peer_listen=":5003")
        assert {5003, 9180} <= addon._access._destinations._ports


@pytest.mark.parametrize(
    "change",
    [
        {"hubcache_size": "lots"},
        {"hubcache_tag_ttl": "-5"},
        {"hubcache_registries": ["ghcr.io"]},
        {"hubcache_dir": "/elsewhere"},
        {"hubcache_status": "127.0.0.1:9181"},
        {"hubcache_bucket": "s3://name"},
        {"hubcache_bucket_size": "1G"},
        {"mode": ["reverse:https://quay.io@5000"]},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_refused_change_while_running_changes_nothing(
    harness: AddonHarness, hub: Hub, change: dict[str, Any]
) -> None:
    before = {name: getattr(harness.context.options, name) for name in change}
    with pytest.raises(exceptions.OptionsError):
        harness.context.options.update(**change)
    assert {name: getattr(harness.context.options, name) for name in change} == before
    image = hub.image(REPO, "1")
    flow = await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert flow.response is not None
    assert flow.response.content == image.manifest


async def test_change_while_running_takes_effect_at_once(harness: AddonHarness, hub: Hub) -> None:
    hub.image(REPO, "1")
    await harness.request("GET", f"/v2/{REPO}/manifests/1")
    harness.context.options.update(hubcache_tag_ttl="0")
    hub.reset_log()
    await harness.request("GET", f"/v2/{REPO}/manifests/1")
    assert {record.method for record in hub.requests(kind="manifest")} == {"HEAD"}


async def test_another_password_file_in_the_config_file_takes_effect(harness: AddonHarness, tmp_path: Path) -> None:
    file = harness.addon._config_file
    assert file is not None
    file.path = tmp_path / "own.yaml"
    for password in ("first", "second"):
        (tmp_path / password).write_text(password)
        file.path.write_text(f"username: alice\npassword_file: {tmp_path / password}\n")
        harness.addon._reload_config_file()
        assert harness.engine._settings.account == Account("alice", password)


@pytest.mark.parametrize("fails", [False, True])
async def test_workers_that_do_not_start_are_stopped(
    harness: AddonHarness, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Also where the program is stopped while they start."""
    made = []

    class Workers:
        def __init__(self) -> None:
            made.append(self)

        async def start(self) -> None:
            assert harness.addon._supervisor is self
            if fails:
                raise ConfigError("hubcache_workers: 2 processes did not start")

    async def start(*_: object) -> object:
        return harness.engine

    monkeypatch.setattr(startup.Engine, "start", start)
    monkeypatch.setattr(startup, "_make_supervisor", lambda *_: Workers())
    monkeypatch.setattr(Hubcache, "_worker_count", lambda *_: 2)
    settings = harness.addon._settings
    assert settings is not None
    with pytest.raises(ConfigError) if fails else contextlib.nullcontext():
        await harness.addon._start_engine(settings, ())
    assert made == [harness.addon._supervisor]
    harness.addon._supervisor = None


@pytest.mark.parametrize("insecure", [True, False])
async def test_upstream_certificates_are_verified_as_mitmproxys_options_say(
    insecure: bool,
) -> None:
    with taddons.context() as context:
        context.options.update(ssl_insecure=insecure)
        mode = mitmproxy_options.upstream_tls_context().verify_mode
    assert mode is (ssl.CERT_NONE if insecure else ssl.CERT_REQUIRED)

"""The probe of a registry for a diagnosis."""

import json
from pathlib import Path
from typing import Any

import pytest
from hubcache.control import registry_probe
from hubcache.control.errors import InvalidCommand
from hubcache.control.registries import NotServed
from hubcache.decide.outbound_proxy import OutboundProxies
from hubcache.oci.account import Account
from hubcache.oci.registry import Registry
from support.engine import Cache, running
from support.standin import Fault, Hub

PREVIEW = "ratelimitpreview/test"


async def probe(cache: Cache, host: str = "docker.io") -> dict[str, Any]:
    """Return the report; checks that it is JSON."""
    report = await cache.engine.control.commands.registry_probe.run(host)
    json.dumps(report)
    assert all(step["seconds"] >= 0 for step in report["steps"])
    return report


def steps_of(report: dict[str, Any]) -> list[tuple[str, int | None]]:
    """Return name and status of each step."""
    return [(step["step"], step["status"]) for step in report["steps"]]


async def test_hub_is_asked_for_a_token_and_the_head_of_a_manifest(hub: Hub, tmp_path: Path) -> None:
    hub.image(PREVIEW, "latest")
    hub.limit(100)
    async with running(hub, tmp_path / "store") as cache:
        report = await probe(cache)
        assert report["ok"]
        assert (report["registry"], report["upstream"]) == ("registry-1.docker.io", hub.url())
        assert steps_of(report) == [("ping", 401), ("token", None), ("manifest", 200)]
        assert report["ratelimit"]["limit"].startswith("100")
        assert report["proxy"] is None
        assert hub.count(kind="manifest", method="GET") == 0


async def test_mirror_without_the_preview_is_asked_for_another_image(hub: Hub, tmp_path: Path) -> None:
    hub.image("library/hello-world", "latest")
    async with running(hub, tmp_path / "store") as cache:
        report = await probe(cache)
        assert report["ok"]
        assert steps_of(report)[-1] == ("manifest", 200)
        assert "library/hello-world" in report["steps"][-1]["target"]


async def test_other_registry_is_only_pinged(hub: Hub, tmp_path: Path) -> None:
    registries = (Registry.parse(f"ghcr.io={hub.url()}"),)
    async with running(hub, tmp_path / "store", registries=registries) as cache:
        assert steps_of(await probe(cache, "GHCR.io")) == [("ping", 401)]


async def test_registry_that_is_down_is_reported(hub: Hub, tmp_path: Path) -> None:
    hub.stop()
    async with running(hub, tmp_path / "store") as cache:
        report = await probe(cache)
        assert not report["ok"]
        assert steps_of(report) == [("ping", None)]
        assert report["steps"][0]["error"]


async def test_token_service_that_fails_is_reported(hub: Hub, tmp_path: Path) -> None:
    hub.faults.add(Fault(kind="token", status=500))
    async with running(hub, tmp_path / "store") as cache:
        report = await probe(cache)
        assert [step["error"] is None for step in report["steps"]] == [True, False]
        assert not report["ok"]


@pytest.mark.parametrize(("kind", "status"), [("ping", 500), ("manifest", 429)])
async def test_status_that_is_an_error_is_reported(hub: Hub, tmp_path: Path, kind: str, status: int) -> None:
    hub.image(PREVIEW, "latest")
    hub.faults.add(Fault(kind=kind, status=status))
    async with running(hub, tmp_path / "store") as cache:
        report = await probe(cache)
        assert str(status) in report["steps"][-1]["error"]
        assert not report["ok"]


async def test_registry_that_does_not_answer_ends_the_probe(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_probe, "SECONDS", 0.2)
    hub.faults.add(Fault(kind="ping", blackhole=True))
    async with running(hub, tmp_path / "store") as cache:
        report = await probe(cache)
        assert report["steps"][-1]["error"] == "no answer within 0.2 seconds for all steps"


async def test_account_gets_a_token(hub: Hub, tmp_path: Path) -> None:
    hub.image(PREVIEW, "latest")
    hub.user("alice", "secret")
    async with running(hub, tmp_path / "store", account=Account("alice", "secret")) as cache:
        assert steps_of(await probe(cache))[-1] == ("account token", None)
        assert (await probe(cache))["ok"]


async def test_account_with_a_wrong_password_is_reported(hub: Hub, tmp_path: Path) -> None:
    hub.image(PREVIEW, "latest")
    hub.user("alice", "secret")
    async with running(hub, tmp_path / "store", account=Account("alice", "wrong")) as cache:
        report = await probe(cache)
        assert not report["ok"]
        assert report["steps"][-1]["step"] == "account token"


async def test_outbound_proxy_is_reported_without_its_password(hub: Hub, tmp_path: Path) -> None:
    async with running(hub, tmp_path / "store") as cache:
        proxy = {"HTTP_PROXY": "http://user:secret@127.0.0.1:1", "HTTPS_PROXY": "http://user:secret@127.0.0.1:1"}
        cache.engine.use_proxies(OutboundProxies.from_environment(proxy))
        report = await probe(cache)
        assert not report["ok"]
        assert "127.0.0.1:1" in report["proxy"]
        assert "secret" not in json.dumps(report)


async def test_registry_that_is_not_cached_is_refused(hub: Hub, tmp_path: Path) -> None:
    async with running(hub, tmp_path / "store") as cache:
        with pytest.raises(NotServed):
            await probe(cache, "quay.io")
        with pytest.raises(InvalidCommand):
            await probe(cache, "https://quay.io/x")

"""The set-up pages of a running program, at the mirror and through the proxy."""

import ssl
from collections.abc import Callable
from functools import partial

import pytest
from support.http_client import Answer, request
from support.program import Program, program_fixtures

program, _ = program_fixtures()


def at_mirror(program: Program, path: str, host: str, method: str = "GET") -> Answer:
    return request(program.mirror, method, path, {"Host": host, "Connection": "close"})


def through_proxy(program: Program, path: str) -> Answer:
    return request(program.proxy, "GET", f"http://hub.cache{path}", {"Host": "hub.cache", "Connection": "close"})


def test_mirror_serves_the_page_with_the_name_that_the_client_used(program: Program) -> None:
    page = at_mirror(program, "/setup", f"cache.lan:{program.mirror}")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert f"http://cache.lan:{program.mirror}".encode() in page.body
    assert f"http://cache.lan:{program.proxy}".encode() in page.body


def test_proxy_serves_the_page_at_hub_cache_with_its_own_address(program: Program) -> None:
    page = through_proxy(program, "/setup")
    assert page.status == 200
    assert f"http://127.0.0.1:{program.mirror}".encode() in page.body


def test_root_of_hub_cache_is_the_status_page(program: Program) -> None:
    page = through_proxy(program, "/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.body == through_proxy(program, "/status").body == program.status_page("/")
    assert b'href="/setup"' in page.body


@pytest.mark.parametrize("path", ["/", "/status", "/status.json", "/events"])
def test_mirror_has_no_status_page(program: Program, path: str) -> None:
    """Its clients are more than those of the proxy: the whole network may pull."""
    for host in ("cache.lan", "hub.cache"):
        assert at_mirror(program, path, host).status == 404


@pytest.mark.parametrize("fetch", [through_proxy, partial(at_mirror, host="cache")])
def test_certificate_is_the_one_that_clients_must_trust(program: Program, fetch: Callable[..., Answer]) -> None:
    certificate = fetch(program, "/ca.crt").body.decode()
    assert certificate == (program.confdir / "mitmproxy-ca-cert.pem").read_text()
    assert "PRIVATE" not in certificate
    ssl.create_default_context(cadata=certificate)


def test_script_contains_the_addresses_of_the_cache(program: Program) -> None:
    script = at_mirror(program, "/setup/attach", "cache.lan").body.decode()
    assert f"\nmirror='cache.lan:{program.mirror}' " in script
    assert f"\nproxy='cache.lan:{program.proxy}'\n" in script


def test_requests_of_a_client_are_counted_and_its_setup_requests_are_not(program: Program) -> None:
    before = int(at_mirror(program, "/setup/answered", "cache").body)
    assert at_mirror(program, "/v2/", "cache").status == 200
    assert int(at_mirror(program, "/setup/answered", "cache").body) == before + 1


def test_unknown_page_is_an_error_of_a_registry(program: Program) -> None:
    assert at_mirror(program, "/setup/nothing", "cache").status == 404

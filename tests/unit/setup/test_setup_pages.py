"""The set-up pages are served at the mirror for GET and HEAD, and nowhere else."""

from pathlib import Path

import pytest
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.serve.messages import Answer, Listener, Request, Result
from hubcache.setup import setup_pages
from hubcache.setup.setup_pages import Page, SetupPages


@pytest.fixture
def setup(tmp_path: Path) -> SetupPages:
    certificate = tmp_path / "mitmproxy-ca-cert.pem"
    certificate.write_text("PEM")
    return SetupPages(certificate, 5000, 8080)


def asked(
    path: str,
    method: str = "GET",
    listener: Listener = Listener.MIRROR,
    client: str = "10.0.0.7",
    to_cache: bool = False,
) -> Request:
    headers = {"host": "cache.lan:5000"}
    return Request(method, path, Registry.parse(HUB_HOST), listener, headers, client=client, to_cache=to_cache)


def answer(setup: SetupPages, path: str, **more: str) -> Answer:
    found = setup.answer(asked(path, **more))
    assert found is not None
    return found


def test_page_carries_the_name_that_the_client_used(setup: SetupPages) -> None:
    page = answer(setup, "/setup")
    assert (page.status, page.result) == (200, Result.LOCAL)
    assert b"http://cache.lan:5000" in page.body


def test_certificate_is_that_of_the_ca(setup: SetupPages) -> None:
    assert answer(setup, "/ca.crt").body == b"PEM"


def test_head_has_a_length_and_no_body(setup: SetupPages) -> None:
    page = answer(setup, "/ca.crt", method="HEAD")
    assert (page.body, page.length) == (b"", 3)


def test_certificate_that_was_removed_is_not_found(tmp_path: Path) -> None:
    assert SetupPages(tmp_path / "removed.pem", 5000, 8080).answer(asked("/ca.crt")) is None


@pytest.mark.parametrize("path", ["/v2/", "/", "/setup/x", "/ca.key", "/v2/library/debian/manifests/setup"])
def test_other_paths_are_left_to_the_registry(setup: SetupPages, path: str) -> None:
    assert setup.answer(asked(path)) is None


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_methods_that_write_get_no_page(setup: SetupPages, method: str) -> None:
    assert setup.answer(asked("/setup", method)) is None


def test_registry_host_inside_the_proxy_has_no_setup_pages(setup: SetupPages) -> None:
    assert setup.answer(asked("/setup", listener=Listener.PROXY)) is None


def test_status_page_is_only_at_the_name_of_the_cache(setup: SetupPages) -> None:
    setup.public_status = {"/": Page("text/html", b"status", {"X-Test": "1"})}.get
    page = setup.answer(asked("/", to_cache=True))
    assert page is not None
    assert (page.body, page.headers["Content-Type"], page.headers["X-Test"]) == (b"status", "text/html", "1")
    assert setup.answer(asked("/")) is None
    assert setup.answer(asked("/other", to_cache=True)) is None
    assert b"cache.lan" in answer(setup, "/setup").body


def test_requests_are_counted_by_client(setup: SetupPages) -> None:
    setup.count("10.0.0.7")
    setup.count("10.0.0.7", 2)
    setup.count("10.0.0.8")
    assert answer(setup, "/setup/answered").body == b"3\n"
    assert answer(setup, "/setup/answered", client="10.0.0.9").body == b"0\n"


def test_counted_clients_are_bounded(setup: SetupPages) -> None:
    for number in range(setup_pages.MAX_CLIENTS + 100):
        setup.count(f"client {number}")
    assert len(setup._answered) == setup_pages.MAX_CLIENTS

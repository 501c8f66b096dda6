"""Responses that are made from answers, and the headers of answers that are passed on."""

import pytest
from hubcache.mitm import flow_headers
from hubcache.oci.registry import Registry
from hubcache.serve.messages import Answer, Result
from mitmproxy.http import Response

HUB = Registry.parse("registry-1.docker.io=http://localhost:5001")
BEARER = b'Bearer realm="http://localhost:5002/token",service="s"'
GHCR = Registry.parse("ghcr.io")


def test_answer_from_memory_has_exactly_its_headers_and_length() -> None:
    made = flow_headers.response(Answer(404, {"Content-Type": "application/json"}, Result.ERROR, body=b"{}", length=2))
    assert (made.status_code, made.reason, made.raw_content) == (404, "Not Found", b"{}")
    assert dict(made.headers) == {"Content-Type": "application/json", "Content-Length": "2"}


def test_head_has_the_length_of_the_body_of_a_get() -> None:
    made = flow_headers.response(Answer(200, {}, Result.HIT, length=1234))
    assert made.raw_content == b""
    assert made.headers["Content-Length"] == "1234"


def test_304_has_no_length() -> None:
    assert "Content-Length" not in flow_headers.headers(Answer(304, {"ETag": '"x"'}, Result.HIT))


def test_header_that_is_not_latin_1_does_not_break_the_answer() -> None:
    made = flow_headers.headers(Answer(200, {"Cache-Status": 'hubcache; detail="\u2019"'}, Result.HIT))
    assert made["Cache-Status"] == 'hubcache; detail="?"'


@pytest.mark.parametrize("status", [200, 206, 304, 400, 416, 431, 429, 502, 503])
def test_every_status_has_its_reason(status: int) -> None:
    assert flow_headers.response(Answer(status, {}, Result.HIT)).reason


def passed(
    registry: Registry, proxied: bool = True, presented: str | None = None, sent: str | None = None, **headers: str
) -> Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    response = Response.make(202, b"", given)
    flow_headers.adapt_forwarded(response, registry, proxied=proxied, presented=presented, sent=sent)
    return response


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://localhost:5001/v2/a/blobs/uploads/1?_state=x%3D&y", "/v2/a/blobs/uploads/1?_state=x%3D&y"),
        ("http://localhost:5001/v2/a/manifests/sha256:0", "/v2/a/manifests/sha256:0"),
        ("/v2/a/blobs/uploads/1", "/v2/a/blobs/uploads/1"),
        ("http://localhost:50011/v2/a", "http://localhost:50011/v2/a"),
        ("https://cdn.example.com/x?Signature=a%2Bb", "https://cdn.example.com/x?Signature=a%2Bb"),
    ],
)
def test_location_inside_the_upstream_becomes_relative(location: str, expected: str) -> None:
    assert passed(HUB, location=location).headers["location"] == expected


def test_challenge_of_the_hub_names_the_realm_that_clients_use() -> None:
    challenge = 'Bearer realm="http://localhost:5002/token",service="s",scope="repository:a:push"'
    expected = 'Bearer realm="https://auth.docker.io/token",service="s",scope="repository:a:push"'
    assert passed(HUB, WWW_Authenticate=challenge).headers["www-authenticate"] == expected


@pytest.mark.parametrize("header", ['Basic realm="x"', "Negotiate"])
def test_other_challenges_stay_as_they_are(header: str) -> None:
    assert passed(HUB, WWW_Authenticate=header).headers["www-authenticate"] == header


def test_challenges_of_other_registries_and_of_the_mirror_stay_as_they_are() -> None:
    challenge = 'Bearer realm="https://ghcr.io/token",service="ghcr.io"'
    assert passed(GHCR, WWW_Authenticate=challenge).headers["www-authenticate"] == challenge
    assert passed(HUB, False, WWW_Authenticate=challenge).headers["www-authenticate"] == challenge


@pytest.mark.parametrize("error", ["insufficient_scope", "invalid_token"])
def test_error_of_a_challenge_is_kept_for_the_client_whose_token_it_is_about(error: str) -> None:
    challenge = f'Bearer realm="http://localhost:5002/token",service="s",scope="repository:a:pull",error="{error}"'
    expected = 'Bearer realm="https://auth.docker.io/token",service="s",scope="repository:a:pull"'
    own, other = "Bearer own", "Bearer other"
    assert passed(HUB, True, own, own, WWW_Authenticate=challenge).headers["www-authenticate"] == (
        f'{expected},error="{error}"'
    )
    assert passed(HUB, True, None, other, WWW_Authenticate=challenge).headers["www-authenticate"] == expected


def test_challenge_that_is_right_for_the_client_is_passed_on_unchanged() -> None:
    challenge = 'Bearer realm="https://ghcr.io/token", service="s",error="invalid_token", error_description="expired"'
    assert passed(GHCR, True, "x", "x", WWW_Authenticate=challenge).headers["www-authenticate"] == challenge


def test_one_of_several_challenges_is_adapted() -> None:
    response = Response.make(401, b"", ((b"WWW-Authenticate", b'Basic realm="x"'), (b"WWW-Authenticate", BEARER)))
    flow_headers.adapt_forwarded(response, HUB, proxied=True)
    expected = ['Basic realm="x"', 'Bearer realm="https://auth.docker.io/token",service="s"']
    assert response.headers.get_all("WWW-Authenticate") == expected


def test_realm_on_another_host_of_the_domain_becomes_one_on_the_registrys_host() -> None:
    registry = Registry.parse("registry.gitlab.com")
    header = passed(
        registry, WWW_Authenticate='Bearer realm="https://gitlab.com/jwt/auth",service="container_registry"'
    )
    expected = 'Bearer realm="https://registry.gitlab.com/.hubcache/token",service="container_registry"'
    assert header.headers["www-authenticate"] == expected


def test_passed_on_answer_has_a_cache_status() -> None:
    assert passed(HUB).headers["cache-status"] == "hubcache; fwd=bypass"

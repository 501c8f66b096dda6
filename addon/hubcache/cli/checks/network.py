"""Checks of what clients need: the ports, the interception of TLS, and a pull through each port."""

import hashlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from ...oci.digest import Digest
from ...oci.media import DOCKER_LIST, OCI_INDEX
from ...oci.registry import HUB_HOST
from ..text import counted, duration
from .certificate import issuer_of
from .finding import Finding, ok, problem, skipped
from .http_client import SECONDS, Response, describe, mirror_request, presented_certificate, proxy_request, token_url
from .target import Target

MAX_SKEW = 60.0
"""Seconds: registries refuse tokens, and clients certificates, that seem to be from the future."""

SMALL_BLOB = 1 << 20
"""Bytes: larger layers are not pulled. All of hello-world is, so that it is stored completely."""

type Request = Callable[[str, str, dict[str, str]], Response]
"""Host, path and headers of a request."""


class PullError(Exception):
    """A step of a pull failed; the message says which, and why."""


def check_proxy_port(target: Target) -> Iterator[Finding]:
    """Connect to the proxy's port."""
    if target.proxy_port is None:
        yield skipped("proxy port", _no_port(target))
        return
    try:
        socket.create_connection((target.host, target.proxy_port), SECONDS).close()
    except OSError as error:
        target.closed.add("proxy")
        yield _closed("proxy port", target.proxy_name(), error, target)
    else:
        yield ok("proxy port", f"{target.proxy_name()} accepts connections")


def check_interception(target: Target) -> Iterator[Finding]:
    """Make a TLS handshake with the registry through the proxy: the cache's CA must have signed the certificate."""
    check, registry = "interception", target.registry
    if target.is_closed("proxy") or target.ca_pem is None:
        yield skipped(check, "it needs the proxy port and the CA certificate")
        return
    try:
        response = proxy_request(target, registry, "/v2/")
    except ssl.SSLCertVerificationError as error:
        signer = issuer_of(presented_certificate(target, registry))
        yield problem(
            check,
            f"{target.proxy_name()} presents a certificate for {registry} that not the cache's CA signed, but {signer} "
            f"({error.verify_message})",
            "check that the port belongs to this cache, that its CA was not replaced since its start, and that "
            f"hubcache_registries contains {registry}",
        )
    except (OSError, http.client.HTTPException) as error:
        yield problem(
            check, f"no connection to {registry} through {target.proxy_name()}: {describe(error)}", _proxy_advice(error)
        )
    else:
        if response.status in (http.client.OK, http.client.UNAUTHORIZED):
            yield ok(check, f"TLS with {registry} is intercepted with the cache's CA")
        else:
            yield problem(check, f"{registry}/v2/ answered {response.status}", "see the cache's log")


def check_mirror_port(target: Target) -> Iterator[Finding]:
    """Ask the mirror's port for `/v2/`, as all clients do first."""
    if target.mirror_port is None:
        yield skipped("mirror port", _no_port(target))
        return
    try:
        response = mirror_request(target, "/v2/")
    except (OSError, http.client.HTTPException) as error:
        target.closed.add("mirror")
        yield _closed("mirror port", target.mirror_name(), error, target)
        return
    if response.status in (http.client.OK, http.client.UNAUTHORIZED):
        yield ok("mirror port", f"http://{target.mirror_name()}/v2/ answers")
    else:
        yield problem(
            "mirror port",
            f"http://{target.mirror_name()}/v2/ answered {response.status}",
            "check that the port belongs to this cache, and that hubcache_clients permits this machine",
        )


def check_pulls(target: Target) -> Iterator[Finding]:
    """Pull manifest and config of the image through both ports, as a client does."""
    namespace = "docker.io" if target.registry == HUB_HOST else target.registry
    if not target.is_closed("mirror"):
        yield _pull(
            target, "mirror pull", lambda _, path, headers: mirror_request(target, f"{path}?ns={namespace}", headers)
        )
    if not target.is_closed("proxy") and target.ca_pem is not None:
        yield _pull(target, "proxy pull", lambda host, path, headers: proxy_request(target, host, path, headers))


def clock_finding(date: str | None, now: float, other: str) -> Finding | None:
    """Return the finding about a `Date` header (RFC 9110 section 6.6.1); None if it is missing or malformed."""
    try:
        ahead = now - parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    if abs(ahead) <= MAX_SKEW:
        return ok("clock", f"it agrees with {other}")
    direction = "ahead of" if ahead > 0 else "behind"
    return problem(
        "clock",
        f"this machine is {duration(abs(ahead))} {direction} {other}",
        "synchronize the clocks (timedatectl set-ntp true): tokens and certificates are refused otherwise",
    )


def _pull(target: Target, check: str, request: Request) -> Finding:
    started = time.monotonic()
    try:
        origins = _pulled(target, request)
    except PullError as error:
        return problem(check, f"{target.image}: {error}", "see the cache's log, and hubcache status")
    except ssl.SSLCertVerificationError as error:
        return problem(check, f"{target.image}: {describe(error)}", "see the finding about interception")
    except (OSError, http.client.HTTPException) as error:
        return problem(check, f"{target.image}: {describe(error)}", "see the cache's log")
    return ok(check, f"{target.image} in {duration(time.monotonic() - started)}: {origins}")


def _pulled(target: Target, request: Request) -> str:
    """Pull the manifest, config and small layers; return where they came from. Raises `PullError`."""
    image, headers = target.image, dict[str, str]()
    path = f"/v2/{image.repository}/manifests/{image.reference}"
    response = request(image.host, path, headers)
    if response.status == http.client.UNAUTHORIZED:
        headers = {"Authorization": f"Bearer {_token(response, request)}"}
        response = request(image.host, path, headers)
    manifest = _document(response, "manifest")
    if response.headers.get_content_type() in (OCI_INDEX, DOCKER_LIST):
        children = manifest.get("manifests") or []
        chosen = next((each for each in children if each.get("platform", {}).get("os") == "linux"), None)
        if chosen is None:
            raise PullError("its index has no manifest for Linux")
        path = f"/v2/{image.repository}/manifests/{chosen['digest']}"
        manifest = _document(request(image.host, path, headers), "manifest of a platform")
    blobs = [manifest["config"], *(layer for layer in manifest["layers"] if layer["size"] <= SMALL_BLOB)]
    origins = {_blob(target, Digest.parse(str(blob["digest"])), request, headers) for blob in blobs}
    return f"manifest {response.origin}, {counted(len(blobs), 'blob')} {' and '.join(sorted(origins))}"


def _blob(target: Target, digest: Digest, request: Request, headers: dict[str, str]) -> str:
    """Pull and verify a blob; return where it came from."""
    blob = request(target.image.host, f"/v2/{target.image.repository}/blobs/{digest}", headers)
    if blob.status in (http.client.FOUND, http.client.TEMPORARY_REDIRECT):
        raise PullError("a blob is redirected to another host, so that the cache did not serve it")
    if blob.status != http.client.OK:
        raise PullError(f"a blob was answered with {blob.status}: {_reason(blob)}")
    if hashlib.new(digest.algorithm, blob.body).hexdigest() != digest.hex:
        raise PullError(f"the content of blob {digest} does not match its digest")
    return blob.origin


def _token(response: Response, request: Request) -> str:
    """Return a token for the challenge of a 401 response."""
    found = token_url(response.headers.get("WWW-Authenticate", ""))
    if found is None:
        raise PullError(f"401 without a challenge: {_reason(response)}")
    answer = request(*found, {})
    if answer.status != http.client.OK:
        raise PullError(f"the token service {found[0]} answered {answer.status}: {_reason(answer)}")
    try:
        document = answer.document()
        return str(document.get("token") or document["access_token"])
    except (ValueError, KeyError) as error:
        raise PullError(f"the token service {found[0]} sent no token") from error


def _document(response: Response, what: str) -> dict[str, Any]:
    if response.status != http.client.OK:
        raise PullError(f"the {what} was answered with {response.status}: {_reason(response)}")
    try:
        return response.document()
    except ValueError as error:
        raise PullError(f"the {what} is no JSON") from error


def _reason(response: Response) -> str:
    """Return the message of an error in the format of the distribution spec, else the beginning of the body."""
    try:
        return str(json.loads(response.body)["errors"][0]["message"])
    except (ValueError, LookupError, TypeError):
        return response.body[:100].decode(errors="replace") or "no reason given"


def _no_port(target: Target) -> str:
    return "its number is not known, because the cache does not run" if target.report is None else "the cache has none"


def _closed(check: str, name: str, error: Exception, target: Target) -> Finding:
    advice = (
        "check the address and firewalls between this machine and the cache, and that it listens on all addresses"
        if target.is_remote
        else "start the cache, and look in its log for a port that could not be opened"
    )
    return problem(check, f"{name} does not answer: {describe(error)}", advice)


def _proxy_advice(error: Exception) -> str:
    if "407" in str(error):
        return "the proxy requires a password (mitmproxy's option proxyauth): clients must send it"
    return "check hubcache_clients and hubcache_tunnel, and that the port belongs to this cache"

"""Runs the checks in their order: for the cache on this machine, and for one on another machine."""

import http.client
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...oci.image_name import ImageName
from ...operate import ca, installation
from ..client import ControlClient
from ..configuration import configured
from ..errors import CommandError, UsageError
from . import bucket, certificate, engines, network, program, registry, storage
from .finding import Finding, ok, problem
from .http_client import mirror_request
from .target import Target, reachable_host

MIRROR_PORT, PROXY_PORT = 5000, 8080
STATUS_ADDRESS = "127.0.0.1:9180"
DEFAULT_IMAGE = ImageName.parse("hello-world")

_SECONDS = 5.0
_PROXY = re.compile(rb"^proxy='([^']*)'", re.MULTILINE)
"""The line of the attach script with the address of the proxy."""

type Check = Callable[[Target], Iterator[Finding]]


def of_local_cache(directory: Path, image: ImageName | None) -> Iterator[Finding]:
    """Check the cache that has its store in `directory`, whether or not it runs."""
    target = Target(image or DEFAULT_IMAGE, client=ControlClient(directory))
    target.ca_file = installation.ca_directory() / ca.CERTIFICATE_FILE
    try:
        report = ControlClient(directory).get("/v1/status", seconds=_SECONDS)
    except CommandError as error:
        yield _without_socket(target, directory, str(error))
    else:
        target.report = report
        _use_listeners(target, report)
        if certificate_file := report["process"]["ca_certificate"]:
            target.ca_file = Path(certificate_file)
        if image is None:
            target.image = _image_of(report, target.image)
        yield ok("cache", program.running_text(report, directory))
    yield from _run(
        target,
        *(program.check_versions, program.check_options_file, certificate.check_certificate),
        *(network.check_proxy_port, network.check_interception, network.check_mirror_port, network.check_pulls),
        *(registry.check_registry, storage.check_store, bucket.check_bucket, program.check_report),
        *(program.check_outbound_proxy, program.check_descriptors),
    )


def of_remote_cache(
    host: str, mirror_port: int | None, proxy_port: int | None, image: ImageName | None
) -> Iterator[Finding]:
    """Check a cache on another machine as far as its clients see it, and the container engines of this machine."""
    target = Target(image or DEFAULT_IMAGE, host, mirror_port or MIRROR_PORT, proxy_port, is_remote=True)
    yield from _run(
        target,
        *(network.check_mirror_port, _ask_mirror, certificate.check_certificate, network.check_proxy_port),
        *(network.check_interception, network.check_pulls, engines.check_engines),
    )


def _run(target: Target, *checks: Check) -> Iterator[Finding]:
    for check in checks:
        yield from check(target)


def _use_listeners(target: Target, report: dict[str, Any]) -> None:
    """Take addresses and ports from a status report; the first listener of a kind is used."""
    for listener in reversed(report["listeners"]):
        if listener["kind"] == "mirror":
            target.mirror_port = listener["port"]
        elif listener["kind"] == "proxy":
            target.proxy_port = listener["port"]
        if listener["kind"] != "status":
            target.host = reachable_host(listener["host"])


def _image_of(report: dict[str, Any], default: ImageName) -> ImageName:
    """Return the image to pull: the default one if its registry is cached, else one that was requested."""
    hosts = report["process"]["registries"]
    if default.host in hosts or not report["images"]:
        return default
    return ImageName.parse(str(report["images"][0]["name"]))


def _ask_mirror(target: Target) -> Iterator[Finding]:
    """Fetch the CA certificate and the port of the proxy, which the mirror's port offers to clients."""
    if target.is_closed("mirror"):
        target.proxy_port = target.proxy_port or PROXY_PORT
        return
    yield from ()
    try:
        target.ca_pem = _body(target, "/ca.crt")
        found = _PROXY.search(_body(target, "/setup/attach") or b"")
    except (OSError, http.client.HTTPException):
        found = None
    if target.proxy_port is None:
        port = found[1].decode().rpartition(":")[2] if found else ""
        target.proxy_port = int(port) if port.isdecimal() else PROXY_PORT


def _body(target: Target, path: str) -> bytes | None:
    response = mirror_request(target, path)
    return response.body if response.status == http.client.OK else None


def _without_socket(target: Target, directory: Path, why: str) -> Finding:
    """Return the finding for a cache without a control socket; its status listener may still answer.

    The socket is open only while the store is.
    """
    health = _status_page("/healthz") or {}
    store = health.get("store")
    if not isinstance(store, dict):  # nothing answers there, or another program does
        return problem("cache", why, "start it: scripts/serve, or the service that runs it")
    if report := _status_page("/status.json"):
        _use_listeners(target, report)
    if Path(store["directory"]) != directory:
        return problem("cache", why, f"a cache with the store {store['directory']} runs: name it with --dir")
    if store["problem"]:
        return problem(
            "cache",
            f"it runs, but stores nothing: {store['problem']}",
            "correct the cause; the cache opens its store again by itself. Until then, pulls continue uncached",
        )
    return problem("cache", f"it runs, but {why}", "look in its log for the control socket")


def _status_page(path: str) -> dict[str, Any] | None:
    """Return a JSON page of the status listener; None if it does not answer."""
    try:
        address = configured("status")
    except UsageError:  # the check of the options file reports it
        address = None
    host, _, port = (address if isinstance(address, str) and address else STATUS_ADDRESS).rpartition(":")
    if not port.isdecimal():
        return None
    connection = http.client.HTTPConnection(reachable_host(host.strip("[]")), int(port), timeout=_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        document = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return document if response.status == http.client.OK and isinstance(document, dict) else None

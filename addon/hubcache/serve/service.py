"""Answers requests to registries: which kind it is, what the store and the upstream say, and how errors are told.

Every `RegistryError` raised below becomes an answer (or a pass-through with the client's own credentials) here.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

from ..oci.digest import Digest
from ..oci.errors import (
    BadUpstream,
    BlobUnknown,
    Denied,
    ManifestUnknown,
    RegistryError,
    StorageError,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from ..oci.media import OCTET_STREAM, negotiation
from ..oci.reference import BlobTarget, ManifestTarget, OtherTarget, Ping, Target, parse_target
from ..oci.registry import HUB_REALM, HUB_SERVICE, Registry
from ..store.store import Store
from ..transfer.tokens import Challenge, pull_scope
from ..transfer.upstream import Upstream
from .blobs import Blob, Blobs
from .manifests import Found, Manifests
from .memory import Memory
from .messages import LOCAL_TOKEN, Answer, Door, Forward, Request, Result

_API_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}
_KINDS: dict[type, str] = {Ping: "ping", ManifestTarget: "manifest", BlobTarget: "blob"}
_LOCAL_TOKEN_SECONDS = 300
_REFUSAL_SECONDS = 30.0


class Service:
    """All registries. `upstreams` is by registry host."""

    def __init__(
        self,
        store: Store,
        memory: Memory,
        manifests: Manifests,
        blobs: Blobs,
        upstreams: dict[str, Upstream],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._memory = memory
        self._manifests = manifests
        self._blobs = blobs
        self._upstreams = upstreams
        self._clock = clock
        self._refused: dict[tuple[str, str], float] = {}

    async def answer(self, request: Request) -> Answer | Forward:
        """Answer a request to a registry, or say how to pass it on."""
        kind = "other"
        try:
            target = parse_target(request.path)
            kind = _KINDS.get(type(target), kind)
            outcome = await self._route(request, target)
        except RegistryError as error:
            outcome = error_answer(error, request.method)
        except StorageError as error:
            outcome = error_answer(Unavailable(str(error)), request.method)
        outcome.kind = kind
        return outcome

    async def _route(self, request: Request, target: Target) -> Answer | Forward:
        if isinstance(target, OtherTarget) or request.method not in ("GET", "HEAD"):
            return await self._pass_on(request, target)
        if isinstance(target, Ping):
            return await self._ping(request)
        return await self._read(request, target)

    async def _read(self, request: Request, target: ManifestTarget | BlobTarget) -> Answer | Forward:
        """A manifest or a blob, as far as the anonymous view may see it; else with the client's own credentials."""
        key = (request.registry.host, target.repository)
        proxied = request.door is Door.PROXY
        if proxied and request.credentials and self._refused.get(key, 0.0) > self._clock():
            return Forward(request.credentials)
        upstream = self._upstreams[request.registry.host]
        try:
            if isinstance(target, BlobTarget):
                return await self._blob(request, upstream, target)
            return await self._manifest(request, upstream, target)
        except (Unauthorized, Denied, ManifestUnknown, BlobUnknown) as error:
            if proxied and request.credentials:
                self._remember_refusal(key)
                return Forward(request.credentials)
            if not isinstance(error, Unauthorized | Denied):
                raise
            if not proxied:  # a mirror has no accounts: 404 sends every client on to its next host
                raise ManifestUnknown("not known to this mirror", error.detail) from error
            if isinstance(error, Denied):
                raise
            challenge = self._for_client(request.registry, Challenge.parse(error.challenge))
            scope = pull_scope(target.repository)
            raise Unauthorized(
                error.message, challenge.render(scope) if challenge else error.challenge, error.detail
            ) from error

    def _remember_refusal(self, key: tuple[str, str]) -> None:
        """Spare a logged-in client's next requests the attempt to read a private repository anonymously."""
        now = self._clock()
        self._refused = {known: until for known, until in self._refused.items() if until > now}
        self._refused[key] = now + _REFUSAL_SECONDS

    # -- manifests and blobs --------------------------------------------------------------------------------------

    async def _manifest(self, request: Request, upstream: Upstream, target: ManifestTarget) -> Answer:
        head = request.method == "HEAD"
        if isinstance(target.reference, Digest):
            found = await self._manifests.by_digest(upstream, target.repository, target.reference, head=head)
        else:
            accept = negotiation(request.headers.get("accept"))
            found = await self._manifests.by_tag(upstream, target.repository, target.reference, accept, head=head)
        self._store.count_request(found.digest, self._clock())
        return self._manifest_answer(request, found)

    def _manifest_answer(self, request: Request, found: Found) -> Answer:
        headers = _content_headers(request, found.digest, found.media_type, found.cache_status)
        if _matches(request, found.digest):
            return Answer(304, headers, found.result)
        if request.method == "HEAD" or found.body is None:
            return Answer(200, headers, found.result, length=found.size)
        return Answer(200, headers, found.result, body=found.body, length=found.size)

    async def _blob(self, request: Request, upstream: Upstream, target: BlobTarget) -> Answer:
        if request.method == "HEAD":
            blob = await self._blobs.head(upstream, target.repository, target.digest)
        else:
            condition = request.headers.get("if-range")
            usable = condition is None or condition == _etag(target.digest)
            wanted = request.headers.get("range") if usable else None
            blob = await self._blobs.get(upstream, target.repository, target.digest, wanted)
        return await self._blob_answer(request, target.digest, blob)

    async def _blob_answer(self, request: Request, digest: Digest, blob: Blob) -> Answer:
        headers = _content_headers(request, digest, OCTET_STREAM, blob.cache_status)
        headers["Accept-Ranges"] = "bytes"
        if _matches(request, digest):
            if blob.source is not None:
                await blob.source.close()
            return Answer(304, headers, blob.result)
        if blob.part is None:
            return Answer(200, headers, blob.result, source=blob.source, length=blob.size)
        headers["Content-Range"] = f"bytes {blob.part.start}-{blob.part.end - 1}/{blob.size}"
        length = blob.part.end - blob.part.start
        return Answer(206, headers, blob.result, source=blob.source, length=length)

    # -- ping, tokens, pass-through -------------------------------------------------------------------------------

    async def _ping(self, request: Request) -> Answer:
        """Answered here, so that it works in an outage. In the proxy door with the registry's challenge: dockerd's
        classic puller learns only from the ping that it may authenticate, and a logged-in client must."""
        if request.door is Door.PROXY and request.headers.get("authorization") is None:
            challenge = await self._challenge(request.registry)
            if challenge is not None:
                demand = error_answer(Unauthorized("authentication required", challenge.render()), request.method)
                demand.result = Result.LOCAL
                return demand
        return Answer(200, _API_VERSION | {"Content-Type": "application/json"}, Result.LOCAL, body=b"{}", length=2)

    async def _challenge(self, registry: Registry) -> Challenge | None:
        """The challenge to tell clients: known for the Hub, else learned from the upstream and remembered."""
        if registry.is_hub:
            return Challenge(HUB_REALM, HUB_SERVICE, None)
        known = Challenge.parse(self._store.challenge(registry.host))
        return known or await self._upstreams[registry.host].challenge()

    @staticmethod
    def _for_client(registry: Registry, challenge: Challenge | None) -> Challenge | None:
        """The upstream's challenge with the realm that clients of this registry use."""
        if challenge is None or not registry.is_hub:
            return challenge
        return Challenge(HUB_REALM, challenge.service, challenge.scope)

    def token(self, request: Request) -> Answer | Forward:
        """A request to the token service: an anonymous one is answered here, a logged-in client's goes there."""
        if request.method != "GET" or request.credentials is not None:
            return Forward(request.credentials, kind="token")
        token = {
            "token": LOCAL_TOKEN,
            "access_token": LOCAL_TOKEN,
            "expires_in": _LOCAL_TOKEN_SECONDS,
            "issued_at": datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        body = json.dumps(token).encode()
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
        return Answer(200, headers, Result.LOCAL, body=body, length=len(body), kind="token")

    async def token_realm(self, registry: Registry) -> str:
        """Where a token request for this registry must go; raises `RegistryError`."""
        if registry.is_hub and registry.upstream == f"https://{registry.host}":
            return HUB_REALM
        challenge = await self._upstreams[registry.host].challenge()
        if challenge is None:
            raise BadUpstream("upstream needs no tokens")
        return challenge.realm

    async def _pass_on(self, request: Request, target: Target) -> Forward:
        """Pushes and whatever is not cached. A read without credentials gets an anonymous token of ours: the client
        believes that the one it has is good."""
        repository = None if isinstance(target, Ping) else target.repository
        authorization = request.credentials
        if authorization is None and repository is not None and request.method in ("GET", "HEAD"):
            authorization = await self._upstreams[request.registry.host].anonymous_authorization(repository)
        moved = None
        if isinstance(target, ManifestTarget):
            moved = (target.repository, str(target.reference))
        return Forward(authorization, moved)

    async def moved(self, registry: Registry, moved: tuple[str, str]) -> None:
        """A push or a delete through this proxy was accepted."""
        repository, reference = moved
        await self._memory.forget_tag(registry.host, repository, reference)


def error_answer(error: RegistryError, method: str) -> Answer:
    """An error in the form that registry clients read; plain text makes dockerd say "invalid character"."""
    body = error.body()
    headers = _API_VERSION | {"Content-Type": "application/json"} | error.headers()
    if error.status == Unsupported.status:
        headers["Allow"] = "GET, HEAD"
    return Answer(error.status, headers, Result.ERROR, body=b"" if method == "HEAD" else body, length=len(body))


def _content_headers(request: Request, digest: Digest, media_type: str, status: str) -> dict[str, str]:
    headers = _API_VERSION | {
        "Content-Type": media_type,
        "Docker-Content-Digest": str(digest),
        "ETag": _etag(digest),
        "Cache-Status": status,
    }
    if request.door is Door.MIRROR:
        headers["OCI-Namespace"] = request.registry.namespace
    return headers


def _etag(digest: Digest) -> str:
    return f'"{digest}"'


def _matches(request: Request, digest: Digest) -> bool:
    """RFC 9110 section 13.1.2, for the one validator there is."""
    condition = request.headers.get("if-none-match", "")
    return condition == "*" or _etag(digest) in (item.strip().removeprefix("W/") for item in condition.split(","))

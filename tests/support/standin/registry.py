"""The three services of the stand-in Hub, each of which responds to a request with a `Reply`."""

import datetime
import hashlib
import hmac
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web

from . import media
from .content import Body, Manifest, platform_digest
from .reply import Reply, error, json_reply
from .requestlog import Record
from .tokens import scopes

if TYPE_CHECKING:
    from .hub import Hub

PATH = re.compile(
    r"/v2/(?P<repo>[^?]+?)/(?:(?P<upload>blobs/uploads)/?|(?P<what>manifests|blobs|tags|referrers)/)(?P<name>[^/?]*)/?"
)
KINDS = {"manifests": "manifest", "blobs": "blob", "tags": "tags", "referrers": "referrers"}
WRITES = ("POST", "PUT", "PATCH", "DELETE")


def classify(listener: str, path: str) -> tuple[str, str, str]:
    """Return kind, repository and last segment (reference, digest, upload id) of a request path."""
    if listener == "cdn":
        found = re.fullmatch(r"/blobs/(.+)/([^/]+)", path)
        return "cdn", found[1] if found else "", found[2] if found else ""
    if listener == "token":
        return "token", "", ""
    if path in ("/v2/", "/v2"):
        return "ping", "", ""
    found = PATH.fullmatch(path)
    if found is None:
        return "other", "", ""
    return "upload" if found["upload"] else KINDS[found["what"]], found["repo"], found["name"]


@dataclass(frozen=True)
class Part:
    """A range of a body."""

    body: Body
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        return self.body.chunks(self.start + start, self.start + stop)


def ranged(body: Body, wanted: str | None, headers: dict[str, str]) -> Reply:
    """Return `body`, the requested range of it, or 416."""
    headers = headers | {"Accept-Ranges": "bytes"}
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if found is None or not (found[1] or found[2]):
        return Reply(200, headers, body)
    if found[1]:
        start, stop = int(found[1]), min(int(found[2]) + 1, body.size) if found[2] else body.size
    else:
        start, stop = max(body.size - int(found[2]), 0), body.size
    if start >= body.size or stop <= start:
        return Reply(416, {"Content-Range": f"bytes */{body.size}"})
    return Reply(206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{body.size}"}, Part(body, start, stop))


class Registry:
    """The service of `registry-1.docker.io`."""

    def __init__(self, hub: "Hub") -> None:
        self._hub = hub

    def challenge(self, scope: str = "", reason: str = "") -> Reply:
        """Return a 401 with the Bearer challenge."""
        value = f'Bearer realm="{self._hub.realm}",service="{self._hub.service}"'
        value += f',scope="{scope}"' if scope else ""
        value += f',error="{reason}"' if reason else ""
        return error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": value})

    def _refused(self, record: Record, request: web.Request) -> Reply | None:
        """Return the 401 for a request that its token does not permit, else None."""
        state, token = self._hub.accounts.find(request.headers.get("Authorization"))
        record.token, record.user = state, token.user if token else ""
        if not self._hub.auth:
            return None
        action = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}.get(request.method, "push")
        actions = {"pull": "pull", "push": "pull,push", "delete": "delete"}[action]
        scope = f"repository:{record.repo}:{actions}" if record.repo else ""
        if token is None:
            return self.challenge(scope, "" if state == "none" else "invalid_token")
        if record.repo and action not in token.access.get(record.repo, ()):
            return self.challenge(scope, "insufficient_scope")
        return None

    async def answer(self, request: web.Request, record: Record, name: str) -> Reply:
        if (request.headers.get("Authorization") or "").lower().startswith("basic"):
            self._hub.violations.append(f"a password was sent to the registry: {request.method} {record.path}")
        if refused := self._refused(record, request):
            return refused
        backend, repo = self._hub.backend, record.repo
        if record.kind == "ping":
            return json_reply(200, {})
        if record.kind == "other":
            return Reply(404, {"Content-Type": "text/plain; charset=utf-8"}, b"404 page not found\n")
        if request.method in WRITES or record.kind == "upload":
            return await self._hub.write(request, repo, record.kind, name)
        if record.kind == "manifest":
            return await self._manifest(request, repo, name)
        if record.kind == "blob":
            return await self._blob(request, repo, name)
        if record.kind == "tags":
            if not await backend.has(repo):
                return error(404, "NAME_UNKNOWN", "repository name not known to registry", detail={"name": repo})
            return json_reply(200, {"name": repo, "tags": await backend.tags(repo)})
        if not self._hub.referrers:
            return Reply(404, {"Content-Type": "text/plain; charset=utf-8"}, b"404 page not found\n")
        return await self._referrers(request, repo, name)

    async def _referrers(self, request: web.Request, repo: str, digest: str) -> Reply:
        """Return referrers filtered by `artifactType`, in pages whose links have the registry's own address."""
        headers = {"Content-Type": media.OCI_INDEX}
        found = await self._hub.backend.referrers(repo, digest)
        if wanted := request.query.get("artifactType"):
            found = [each for each in found if each.get("artifactType") == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        start, size = int(request.query.get("last", "0")), self._hub.referrers_page or len(found)
        if start + size < len(found):
            query = dict(request.query) | {"last": str(start + size)}
            headers["Link"] = f'<{request.url.with_query(query)}>; rel="next"'
        index = {"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": found[start : start + size]}
        return json_reply(200, index, headers)

    async def _manifest(self, request: web.Request, repo: str, reference: str) -> Reply:
        headers: dict[str, str] = {}
        limit, window = self._hub.ratelimit, self._hub.ratelimit_window
        if limit is not None:
            if request.method == "GET":
                if self._hub.remaining <= 0:
                    retry = {"Content-Type": "text/plain; charset=utf-8", "Retry-After": "60"}
                    return Reply(429, retry, b"Too Many Requests\n")
                self._hub.remaining -= 1
            headers = {
                "ratelimit-limit": f"{limit};w={window}",
                "ratelimit-remaining": f"{self._hub.remaining};w={window}",
                "docker-ratelimit-source": request.remote or "127.0.0.1",
            }
        found = await self._hub.backend.manifest(repo, reference)
        if found is None:
            detail = {"Tag": reference} if ":" not in reference else {"digest": reference}
            return error(404, "MANIFEST_UNKNOWN", "manifest unknown", headers, detail)
        types = media.accepted(request.headers.getall("Accept", []))
        if ":" not in reference and types is not None:
            found = await self._negotiated(repo, found, types)
            if found is None:
                message = "OCI manifest found, but accept header does not support OCI manifests"
                return error(404, "MANIFEST_UNKNOWN", message, headers)
        etag = f'"{found.digest}"'
        headers |= {"Docker-Content-Digest": found.digest, "ETag": etag}
        if request.headers.get("If-None-Match") == etag:
            return Reply(304, headers)
        return Reply(200, headers | {"Content-Type": found.media_type}, found.body)

    async def _negotiated(self, repo: str, found: Manifest, types: set[str]) -> Manifest | None:
        if found.media_type in types:
            return found
        if found.media_type in media.INDEXES and (digest := platform_digest(found)):
            single = await self._hub.backend.manifest(repo, digest)
            return single if single and single.media_type in types else None
        return found if found.media_type not in (*media.INDEXES, *media.MANIFESTS) else None

    async def _blob(self, request: web.Request, repo: str, digest: str) -> Reply:
        body = await self._hub.backend.blob(repo, digest)
        if body is None:
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry", detail={"digest": digest})
        headers = {"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"}
        if self._hub.redirects:
            location = self._hub.cdn.sign(f"/blobs/{repo}/{digest}")
            return Reply(307, {"Location": location, "Docker-Content-Digest": digest})
        return ranged(body, request.headers.get("Range"), headers | {"ETag": f'"{digest}"'})


class TokenService:
    """The service of `auth.docker.io`: GET with Basic, or POST with an OAuth 2 password grant."""

    def __init__(self, hub: "Hub") -> None:
        self._hub = hub

    async def answer(self, request: web.Request, record: Record) -> Reply:
        if request.path != "/token":
            return Reply(404, {"Content-Type": "text/plain; charset=utf-8"}, b"404 page not found\n")
        accounts = self._hub.accounts
        if request.method == "POST":
            form = await request.post()
            user: str | None = str(form.get("username", ""))
            if user and not accounts.check(user, str(form.get("password", ""))):
                user = None
            wanted = scopes([str(value) for value in form.getall("scope", [])])
        else:
            user = accounts.login(request.headers.get("Authorization"))
            wanted = scopes(request.query.getall("scope", []))
        if user is None:
            return json_reply(401, {"details": "incorrect username or password"})
        record.user = user
        access = {
            repo: granted
            for repo, actions in wanted.items()
            if (granted := accounts.granted(user, repo, await self._hub.backend.has(repo)) & actions)
        }
        token = accounts.issue(user, access)
        issued = datetime.datetime.now(datetime.UTC).isoformat()
        document: dict[str, object] = {"token": token.value, "access_token": token.value, "issued_at": issued}
        if accounts.expires_in is not None:
            document["expires_in"] = accounts.expires_in
        return json_reply(200, document)


class Cdn:
    """The blob store that the registry redirects to; it serves signed URLs only."""

    def __init__(self, hub: "Hub", key: bytes) -> None:
        self._hub, self._key = hub, key
        self.lifetime = 1200
        """Seconds for which a signed URL is valid."""

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._key, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()

    def sign(self, path: str) -> str:
        """Return the URL for `path` with an expiry time and a signature."""
        expires = str(int(time.time()) + self.lifetime)
        query = f"X-Expires={expires}&X-Signature={self._signature(path, expires)}"
        return f"{self._hub.url('cdn')}{quote(path, safe='/:')}?{query}"

    async def answer(self, request: web.Request, record: Record, digest: str) -> Reply:
        plain = {"Content-Type": "text/plain"}
        if "Authorization" in request.headers:
            self._hub.violations.append(f"Authorization was sent to the CDN: {request.method} {record.path}")
            return Reply(400, plain, b"Only one auth mechanism allowed\n")
        expires = request.query.get("X-Expires", "0")
        expected = self._signature(request.path, expires)
        if not hmac.compare_digest(expected, request.query.get("X-Signature", "")) or int(expires) < time.time():
            return Reply(403, plain, b"AccessDenied\n")
        body = await self._hub.backend.blob(record.repo, digest)
        if body is None:
            return Reply(404, plain, b"NoSuchKey\n")
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{digest}"'}
        return ranged(body, request.headers.get("Range"), headers)

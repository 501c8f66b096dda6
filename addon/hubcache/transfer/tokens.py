"""Bearer tokens for the cache's own requests (distribution spec, "token authentication").

A token realm may be on another host than the registry (the Hub's is), so what is sent there matters: anonymous
requests carry nothing but service and scope, and the account's password goes only to a realm in the registry's domain.
"""

import json
import re
import time
from dataclasses import dataclass
from typing import Self

import aiohttp
from yarl import URL

from ..oci.account import Account
from ..oci.errors import BadUpstream, Denied, TooManyRequests, Unavailable
from .client import Client
from .coalesce import Coalescer
from .http import parse_url, pause, read_body

_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')

_TOKEN = re.compile(r"[\x21-\x7e]+")

DEFAULT_LIFETIME = 60.0
"""Seconds a token lives when the answer has no `expires_in` (distribution spec, token)."""

_LONGEST_LIFETIME = 3600
_MARGIN = 0.8
_MAX_BODY = 1 << 20


@dataclass(frozen=True, slots=True)
class Challenge:
    """A parsed `WWW-Authenticate: Bearer …` header."""

    realm: str
    service: str | None
    scope: str | None
    error: str | None = None

    @classmethod
    def parse(cls, header: str | None) -> Self | None:
        """None when the header is absent, of another scheme, or without a realm."""
        scheme, _, rest = (header or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        fields = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(rest)}
        if not fields.get("realm"):
            return None
        return cls(fields["realm"], fields.get("service"), fields.get("scope"), fields.get("error"))

    def render(self, scope: str | None = None) -> str:
        """As a header value, for `scope` if given."""
        fields = {"realm": self.realm, "service": self.service, "scope": scope or self.scope}
        return "Bearer " + ",".join(f'{name}="{value}"' for name, value in fields.items() if value)


def pull_scope(repository: str) -> str:
    """The scope of a read."""
    return f"repository:{repository}:pull"


class Tokens:
    """Tokens by realm, scope and account, fetched once for all who wait, kept until shortly before they expire."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[tuple[Challenge, str, bool], tuple[str, float]] = {}
        self._asked = Coalescer[tuple[Challenge, str, bool], str]()
        self._paused: dict[tuple[str, bool], float] = {}

    async def get(self, challenge: Challenge, scope: str, account: Account | None = None) -> str:
        """A token, anonymous or the account's; raises `RegistryError` when the service gives none."""
        key = (challenge, scope, account is not None)
        known = self._known.get(key)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        left = self._paused.get((challenge.realm, account is not None), 0.0) - time.monotonic()
        if left > 0:
            raise TooManyRequests("token service limits our requests", left)
        return await self._asked.run(key, lambda: self._fetch(challenge, scope, account))

    def has(self, challenge: Challenge, scope: str) -> bool:
        """Whether an anonymous token is at hand; one that is not new may be from before the repository was."""
        return (challenge, scope, False) in self._known

    def is_accounts(self, challenge: Challenge, scope: str, token: str) -> bool:
        """Whether this token is the configured account's."""
        return self._known.get((challenge, scope, True), ("", 0.0))[0] == token

    def forget(self, challenge: Challenge, scope: str, token: str) -> None:
        """The registry refused this token."""
        for with_account in (False, True):
            if self._known.get((challenge, scope, with_account), ("", 0.0))[0] == token:
                del self._known[challenge, scope, with_account]

    async def _fetch(self, challenge: Challenge, scope: str, account: Account | None) -> str:
        url = realm_url(challenge.realm)
        query = {"scope": scope} | ({"service": challenge.service} if challenge.service else {})
        headers = {"Authorization": account.authorization} if account is not None else {}
        async with self._client.send("token", "GET", url.update_query(query), headers) as response:
            if response.status == 429:
                seconds = pause(response)
                self._paused[challenge.realm, account is not None] = time.monotonic() + seconds
                raise TooManyRequests("token service limits our requests", seconds)
            if response.status in (401, 403):
                raise Denied("token service refuses", {"upstream_status": response.status})
            if response.status != 200:
                raise Unavailable(f"token service answered {response.status}")
            try:
                token, lifetime = parse_token(await read_body(response, _MAX_BODY))
            except (aiohttp.ClientError, TimeoutError) as error:
                raise Unavailable(f"token service broke off: {type(error).__name__}") from error
        now = time.monotonic()
        self._known = {key: value for key, value in self._known.items() if value[1] > now}
        self._known[challenge, scope, account is not None] = (token, now + lifetime * _MARGIN)
        return token


def realm_url(realm: str) -> URL:
    """A realm as a URL; raises `BadUpstream` when it is none."""
    try:
        url = parse_url(realm)
    except ValueError as error:
        raise BadUpstream("upstream named a token realm that is not a URL") from error
    if url.scheme not in ("http", "https") or url.host is None:
        raise BadUpstream("upstream named a token realm that is not an http URL")
    return url


def parse_token(body: bytes) -> tuple[str, float]:
    """The token in an answer of the token service, and its lifetime in seconds; raises `RegistryError` without one."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unavailable("token service answered with something that is not JSON") from error
    if isinstance(document, dict):
        token = document.get("token") or document.get("access_token")
        lifetime = document.get("expires_in", DEFAULT_LIFETIME)
        if isinstance(token, str) and not _TOKEN.fullmatch(token):
            raise BadUpstream("token service answered with a token that no header can hold")
        if isinstance(token, str) and isinstance(lifetime, int | float):
            return token, float(min(max(0, lifetime), _LONGEST_LIFETIME))
    raise Unavailable("token service answered without a token")

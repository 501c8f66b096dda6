"""Bearer tokens for the cache's own requests (distribution spec, "Token Authentication Specification"; RFC 6750).

A token service may be on another host than the registry (Docker Hub's is), so the cache limits what it sends there:
anonymous requests carry nothing but service and scope, and the account's password is sent only to a realm in the
registry's domain.
"""

import re
import time
from collections.abc import Callable

from cachetools import TLRUCache, TTLCache
from yarl import URL

from ..oci.account import Account
from ..oci.errors import TooManyRequests, Unauthorized, Unavailable
from ..oci.json_reader import read_json
from . import token_wait
from .challenge import MAX_CHALLENGE, Challenge
from .coalesce import Coalescer
from .realms import parse_realm
from .response_body import read_text_body
from .retry_after import pause_seconds
from .upstream_client import UpstreamClient

DEFAULT_LIFETIME = 60.0
"""Seconds for which a token is valid when the answer has no `expires_in` (distribution spec, "Requesting a Token")."""

_MAX_LIFETIME = 3600.0
_USED_SHARE = 0.8
"""Share of its lifetime for which a token is used."""

_MAX_BODY = 1 << 20

_MAX_CACHED_BYTES = 32 << 20
"""Bytes of tokens that are remembered. A registry chooses how long its tokens and challenges are."""

_OVERHEAD = 2 * MAX_CHALLENGE
_MAX_REALMS = 1000
_FAILURE_SECONDS = 60.0
"""How long a token service that failed is considered down when no further request reaches it."""

_TOKEN = re.compile("[!-~]+")
"""Characters that a header may contain (RFC 6750 section 2.1 permits fewer; some registries use more)."""


def pull_scope(repository: str) -> str:
    """Return the scope of a read."""
    return f"repository:{repository}:pull"


type _Key = tuple[Challenge, str, Account | None]


class Tokens:
    """Tokens by challenge, scope and account; concurrent requests share one fetch, and a token is used until shortly
    before it expires."""

    def __init__(self, client: UpstreamClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: TLRUCache[_Key, tuple[str, float]] = TLRUCache(
            _MAX_CACHED_BYTES, lambda _, known, __: known[1], self._now, lambda known: len(known[0]) + _OVERHEAD
        )
        self._fetches = Coalescer[_Key, str]()
        self._paused: TLRUCache[tuple[str, Account | None], float] = TLRUCache(
            _MAX_REALMS, lambda _, until, __: until, self._now
        )
        self._failures: TTLCache[str, str] = TTLCache(_MAX_REALMS, _FAILURE_SECONDS, self._now)

    def _now(self) -> float:
        return self._clock()

    async def get(self, challenge: Challenge, scope: str, registry: URL, account: Account | None = None) -> str:
        """Return a token, anonymous or the account's; raises `RegistryError` when the service issues none.

        `registry` is the origin that sent the challenge; it decides which addresses the realm may have (see
        `UpstreamClient.send`).
        """
        key = (challenge, scope, account)
        known = self._known.get(key)
        if known is not None:
            return known[0]
        pause = self._paused.get((challenge.realm, account), 0.0) - self._now()
        if pause > 0:
            raise TooManyRequests("rate limit of the token service exceeded", pause)
        with token_wait.waiting():
            return await self._fetches.run(key, lambda: self._fetch(challenge, scope, registry, account))

    def has(self, challenge: Challenge, scope: str) -> bool:
        """Whether an anonymous token is remembered; such a token may be older than the repository."""
        return (challenge, scope, None) in self._known

    def is_account_token(self, challenge: Challenge, scope: str, token: str, account: Account | None) -> bool:
        """Whether this token was issued to the configured account."""
        return account is not None and self._known.get((challenge, scope, account), ("", 0.0))[0] == token

    def forget(self, challenge: Challenge, scope: str, token: str, account: Account | None = None) -> None:
        """Forget a token that the registry refused, whether it is anonymous or the account's."""
        for owner in {None, account}:
            if self._known.get((challenge, scope, owner), ("", 0.0))[0] == token:
                self._known.pop((challenge, scope, owner), None)

    def service_failure(self, realm: str) -> str | None:
        """Return why this token service issues no tokens at present; None when no failure is known."""
        return self._failures.get(realm)

    def record_failure(self, realm: str, reason: str) -> None:
        """Remember that the token service did not answer a request, the cache's own or a client's."""
        self._failures[realm] = reason

    def record_success(self, realm: str) -> None:
        """Remember that the token service answered, if only with a refusal."""
        self._failures.pop(realm, None)

    async def _fetch(self, challenge: Challenge, scope: str, registry: URL, account: Account | None) -> str:
        try:
            token, lifetime = await self._request(challenge, scope, registry, account)
        except Unavailable as error:
            self.record_failure(challenge.realm, error.message)
            error.add_context("token service cannot be reached")
            raise
        if lifetime > 0:
            self._known[challenge, scope, account] = (token, self._now() + lifetime * _USED_SHARE)
        return token

    async def _request(
        self, challenge: Challenge, scope: str, registry: URL, account: Account | None
    ) -> tuple[str, float]:
        url = parse_realm(challenge.realm)
        query = {"scope": scope} | ({"service": challenge.service} if challenge.service else {})
        headers = {"Authorization": account.authorization} if account is not None else {}
        async with self._client.send("token", "GET", url.update_query(query), headers, named_by=registry) as response:
            if response.status == 429:
                seconds = pause_seconds(response)
                self._paused[challenge.realm, account] = self._now() + seconds
                raise TooManyRequests("rate limit of the token service exceeded", seconds)
            if response.status in (401, 403):
                self.record_success(challenge.realm)
                required = Challenge(challenge.realm, challenge.service, scope)
                raise Unauthorized(
                    "token service refused access", required.render(), {"upstream_status": response.status}
                )
            if response.status != 200:
                raise Unavailable(f"it answered {response.status}")
            found = parse_token(await read_text_body(response, _MAX_BODY, "its answer"))
        self.record_success(challenge.realm)
        return found


def parse_token(body: bytes) -> tuple[str, float]:
    """Return the token in a token service's answer and its lifetime in seconds; raises `Unavailable` without one."""
    try:
        document = read_json(body, _MAX_BODY)
    except ValueError as error:
        raise Unavailable("it answered with something that is not JSON") from error
    token = (document.get("token") or document.get("access_token")) if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise Unavailable("it answered without a token")
    return token, _lifetime(document.get("expires_in"))


def _lifetime(value: object) -> float:
    """Return the seconds of `expires_in`: a number, which some services put in quotes. Clients ignore other values."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return DEFAULT_LIFETIME
    return float(min(max(0, value), _MAX_LIFETIME))  # 0 for NaN

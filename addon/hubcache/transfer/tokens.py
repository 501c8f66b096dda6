"""Bearer tokens for the cache's own requests (distribution spec, "token authentication").

A token realm may be on another host than the registry (the Hub's is), so what is sent there matters: anonymous
requests carry nothing but service and scope, and the account's password goes only to a realm in the registry's domain.
"""

import re
import time

import aiohttp
from cachetools import TLRUCache, TTLCache
from yarl import URL

from ..oci.account import Account
from ..oci.errors import TooManyRequests, Unauthorized, Unavailable
from ..oci.json_reader import read_json
from .challenge import MAX_CHALLENGE, Challenge
from .coalesce import Coalescer
from .realms import parse_realm
from .session import pause, read_text
from .upstream_client import UpstreamClient

DEFAULT_LIFETIME = 60.0
"""Seconds a token lives when the answer has no `expires_in` (distribution spec, token)."""

_LONGEST_LIFETIME = 3600.0
_MARGIN = 0.8
_MAX_BODY = 1 << 20

_MAX_KEPT = 32 << 20
"""Bytes of tokens that are kept. A registry chooses how long its tokens and challenges are."""

_OVERHEAD = 2 * MAX_CHALLENGE
_MAX_REALMS = 1000
_TROUBLE_SECONDS = 60.0
"""How long a token service that failed is held to be down, where nobody asks it meanwhile."""

_TOKEN = re.compile("[!-~]+")
"""What can go into a header (RFC 6750 section 2.1 permits less; some registries use more)."""


def pull_scope(repository: str) -> str:
    """The scope of a read."""
    return f"repository:{repository}:pull"


type _Key = tuple[Challenge, str, Account | None]


def _now() -> float:
    return time.monotonic()


class Tokens:
    """Tokens by realm, scope and account, fetched once for all who wait, kept until shortly before they expire.

    `home` is the registry's own origin, by which is decided where a realm may be (see `Client.send`).
    """

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client
        self._known: TLRUCache[_Key, tuple[str, float]] = TLRUCache(
            _MAX_KEPT, lambda _, kept, __: kept[1], _now, lambda kept: len(kept[0]) + _OVERHEAD
        )
        self._asked = Coalescer[_Key, str]()
        self._paused: TLRUCache[tuple[str, Account | None], float] = TLRUCache(
            _MAX_REALMS, lambda _, until, __: until, _now
        )
        self._troubles: TTLCache[str, str] = TTLCache(_MAX_REALMS, _TROUBLE_SECONDS, _now)

    async def get(
        self, challenge: Challenge, scope: str, account: Account | None = None, home: URL | None = None
    ) -> str:
        """A token, anonymous or the account's; raises `RegistryError` when the service gives none."""
        key = (challenge, scope, account)
        known = self._known.get(key)
        if known is not None:
            return known[0]
        left = self._paused.get((challenge.realm, account), 0.0) - time.monotonic()
        if left > 0:
            raise TooManyRequests("token service limits our requests", left)
        return await self._asked.run(key, lambda: self._fetch(challenge, scope, account, home))

    def has(self, challenge: Challenge, scope: str) -> bool:
        """Whether an anonymous token is at hand; one that is not new may be from before the repository was."""
        return (challenge, scope, None) in self._known

    def is_account_token(self, challenge: Challenge, scope: str, token: str, account: Account | None) -> bool:
        """Whether this token is the configured account's."""
        return account is not None and self._known.get((challenge, scope, account), ("", 0.0))[0] == token

    def forget(self, challenge: Challenge, scope: str, token: str, account: Account | None = None) -> None:
        """The registry refused this token, which is an anonymous one or the account's."""
        for owner in {None, account}:
            if self._known.get((challenge, scope, owner), ("", 0.0))[0] == token:
                self._known.pop((challenge, scope, owner), None)

    def service_failure(self, realm: str) -> str | None:
        """Why nobody has tokens of this service at present, as far as is known."""
        return self._troubles.get(realm)

    def record_failure(self, realm: str, reason: str) -> None:
        """The service gave no answer, to whoever asked it."""
        self._troubles[realm] = reason

    def record_success(self, realm: str) -> None:
        """The service gave an answer of its own, were it a refusal."""
        self._troubles.pop(realm, None)

    async def _fetch(self, challenge: Challenge, scope: str, account: Account | None, home: URL | None) -> str:
        try:
            token, lifetime = await self._ask(challenge, scope, account, home)
        except Unavailable as error:
            self.record_failure(challenge.realm, error.message)
            error.add_context("token service cannot be reached")
            raise
        if lifetime > 0:
            self._known[challenge, scope, account] = (token, time.monotonic() + lifetime * _MARGIN)
        return token

    async def _ask(
        self, challenge: Challenge, scope: str, account: Account | None, home: URL | None
    ) -> tuple[str, float]:
        url = parse_realm(challenge.realm)
        query = {"scope": scope} | ({"service": challenge.service} if challenge.service else {})
        headers = {"Authorization": account.authorization} if account is not None else {}
        async with self._client.send("token", "GET", url.update_query(query), headers, home=home) as response:
            if response.status == 429:
                seconds = pause(response)
                self._paused[challenge.realm, account] = time.monotonic() + seconds
                raise TooManyRequests("token service limits our requests", seconds)
            if response.status in (401, 403):
                self.record_success(challenge.realm)
                again = Challenge(challenge.realm, challenge.service, scope)
                raise Unauthorized("token service refuses", again.render(), {"upstream_status": response.status})
            if response.status != 200:
                raise Unavailable(f"it answered {response.status}")
            try:
                found = parse_token(await read_text(response, _MAX_BODY))
            except (aiohttp.ClientError, TimeoutError) as error:
                raise Unavailable(f"it broke off: {type(error).__name__}") from error
        self.record_success(challenge.realm)
        return found


def parse_token(body: bytes) -> tuple[str, float]:
    """The token in an answer of the token service, and its lifetime in seconds; raises `RegistryError` without one."""
    try:
        document = read_json(body, _MAX_BODY)
    except ValueError as error:
        raise Unavailable("it answered with something that is not JSON") from error
    token = (document.get("token") or document.get("access_token")) if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise Unavailable("it answered without a token")
    return token, _lifetime(document.get("expires_in"))


def _lifetime(told: object) -> float:
    """Seconds of `expires_in`: a number, for some token services in quotes. Clients overlook what is neither."""
    if isinstance(told, str) and told.isdecimal() and len(told) < 20:
        told = int(told)
    if not isinstance(told, int | float) or isinstance(told, bool):
        return DEFAULT_LIFETIME
    return float(min(max(0, told), _LONGEST_LIFETIME))  # 0 for what is not a number

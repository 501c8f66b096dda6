"""The authentication that one registry demands, and the `Authorization` values for requests to it."""

from collections.abc import Callable

from yarl import URL

from ..decide.throttle import Throttle
from ..oci.account import Account
from ..oci.errors import BadUpstream, Unavailable
from ..oci.registry import Registry
from .challenge import Challenge
from .http_response import HttpResponse
from .realms import may_receive_password
from .tokens import Tokens, pull_scope
from .upstream_client import UpstreamClient
from .upstream_errors import error_of_registry
from .upstream_response import challenge_header

_PING_AGAIN_SECONDS = 60.0
"""How often a registry is pinged for another token service while the one that it named fails."""


class RegistryCredentials:
    """The challenge of one registry and the tokens for it.

    `learned` is called with each new challenge. `account` may be used in place of anonymous access where the caller
    knows that the content is public.
    """

    def __init__(
        self,
        registry: Registry,
        client: UpstreamClient,
        tokens: Tokens,
        learned: Callable[[Registry, Challenge], None],
        account: Account | None,
        clock: Callable[[], float],
    ) -> None:
        self.account = account
        self.last_challenge: Challenge | None = None
        """The last Bearer challenge, without its scope."""
        self.other_challenge: str | None = None
        """A challenge of another scheme than Bearer, as the ping returned it; clients receive it unchanged."""
        self._registry = registry
        self._origin = URL(registry.upstream)
        self._client = client
        self._tokens = tokens
        self._learned = learned
        self._ping_again = Throttle(_PING_AGAIN_SECONDS, clock)

    @property
    def token_service_failure(self) -> str | None:
        """Why the registry's token service issues no tokens at present; None when no failure is known."""
        return None if self.last_challenge is None else self._tokens.service_failure(self.last_challenge.realm)

    async def challenge(self) -> Challenge | None:
        """Return the challenge of the registry's ping, from memory after the first answer; None if it demands no token.

        Raises `RegistryError` where the ping is not answered.
        """
        if self.last_challenge is None:
            ping = URL(f"{self._registry.upstream}/v2/")
            async with self._client.send("ping", "GET", ping, {}, named_by=self._origin) as response:
                if response.status == 429 or response.status >= 500:  # no statement about authentication
                    raise error_of_registry(response, "ping", "", b"")
                self.learn(response)
        return self.last_challenge

    def learn(self, response: HttpResponse) -> Challenge | None:
        """Remember and return the Bearer challenge of a response; None where it has none."""
        header = challenge_header(response)
        challenge = Challenge.parse(header)
        if challenge is None:
            self.other_challenge = header
        else:
            known = Challenge(challenge.realm, challenge.service, None)
            if known != self.last_challenge:
                self.last_challenge = known
                self._learned(self._registry, known)
        return challenge

    async def anonymous(self, repository: str) -> str | None:
        """Return the `Authorization` for anonymous reads of a repository; None where none is needed."""
        challenge = await self.challenge()
        return None if challenge is None else await self._bearer(challenge, pull_scope(repository))

    async def of_account(self, repository: str) -> str | None:
        """Return the configured account's `Authorization`; None without an account, or when its password must not be
        sent to the realm.

        The realm must be in the registry's own domain: a registry that names another one must not have the password
        sent there (RFC 6750 leaves this to the client).
        """
        challenge = await self.challenge() if self.account is not None else None
        if challenge is None or not may_receive_password(self._registry.upstream, challenge.realm):
            return None
        return await self._bearer(challenge, pull_scope(repository), self.account)

    def has_token(self, scope: str) -> bool:
        """Whether an anonymous token for the scope is remembered."""
        return self.last_challenge is not None and self._tokens.has(self.last_challenge, scope)

    async def remembered(self, scope: str) -> str | None:
        """Return an anonymous `Authorization` by the last challenge; None without a challenge.

        When that token service fails, the registry is pinged now and then, in case it names another one by now: it
        can do so only in response to a request without a token.
        """
        known = self.last_challenge
        if known is None:
            return None
        try:
            return await self._bearer(known, scope)
        except (Unavailable, BadUpstream):
            if not self._ping_again.permits(known):
                raise
            self.last_challenge = None
            try:
                named = await self.challenge()
            finally:
                self.last_challenge = self.last_challenge or known
            if named == known:
                raise
        return None if named is None else await self._bearer(named, scope)

    async def renewed(self, challenge: Challenge, scope: str, refused: str | None) -> str:
        """Return an anonymous `Authorization` with a new token, after the registry refused one, or demanded one."""
        known = Challenge(challenge.realm, challenge.service, None)
        if refused is not None:
            self._tokens.forget(known, scope, refused.removeprefix("Bearer "), self.account)
        return await self._bearer(known, scope)

    def kind(self, authorization: str | None, scope: str) -> str:
        """Return whose credentials these are: `anonymous`, `account` or `client` (the label in metrics)."""
        if authorization is None:
            return "anonymous"
        token = authorization.removeprefix("Bearer ")
        known = self.last_challenge
        is_account = known is not None and self._tokens.is_account_token(known, scope, token, self.account)
        return "account" if is_account else "client"

    async def _bearer(self, challenge: Challenge, scope: str, account: Account | None = None) -> str:
        return f"Bearer {await self._tokens.get(challenge, scope, self._origin, account)}"

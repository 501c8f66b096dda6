"""A repository as the public or a client with credentials of its own may read it."""

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from ..oci.errors import RegistryError
from ..transfer.upstream import Upstream


@dataclass(frozen=True, slots=True)
class RepositoryView:
    """One repository, read anonymously (`authorization` None: the public view) or with a client's own credentials.

    Content that the public view may read is downloaded with credentials where there are some: `client_authorization`,
    which are the client's own, or those of the configured account.
    """

    upstream: Upstream
    repository: str
    authorization: str | None = None
    """The `Authorization` whose access rights count."""
    client_authorization: str | None = None
    client: str = ""
    """The address of the client; fills are shared out fairly between addresses."""

    @property
    def host(self) -> str:
        """The registry's host."""
        return self.upstream.registry.host

    @property
    def key(self) -> tuple[str, str, str]:
        """A key that is equal for views with the same access; holds a hash of the credentials."""
        if self.authorization is None:
            return self.host, self.repository, ""
        digest = hashlib.sha256(self.authorization.encode(errors="surrogateescape")).hexdigest()
        return self.host, self.repository, digest

    def request_key(self, *parts: str) -> str:
        """Return a key for a request by this view, under which an error answer is remembered."""
        return " ".join((self.key[2], *parts))

    @property
    def needs_anonymous_check(self) -> bool:
        """Whether a GET would use other credentials than the view's, so that its success does not prove access."""
        return self.authorization is None and (
            self.client_authorization is not None or self.upstream.account is not None
        )

    async def try_credentials[Result](
        self,
        attempt: Callable[[str | None], Awaitable[Result]],
        refusals: tuple[type[RegistryError], ...],
    ) -> Result:
        """Return the result of the download `attempt` with the first credentials that are not refused.

        The public view tries the client's own credentials (the pull counts for the client's account), then the
        configured account's, then none. The refusal of the last attempt is raised. The caller has checked, by an
        anonymous request immediately before, that the public may read the content. The account's token is requested
        only when it is used.
        """
        if self.authorization is not None:
            return await attempt(self.authorization)
        if self.client_authorization is not None:
            with suppress(*refusals):
                return await attempt(self.client_authorization)
        try:
            account = await self.upstream.account_authorization(self.repository)
        except RegistryError:
            account = None  # the token service refuses or is down: go on without credentials
        if account is not None:
            with suppress(*refusals):
                return await attempt(account)
        return await attempt(None)

"""Through whose eyes a repository is looked at."""

import hashlib
from dataclasses import dataclass

from ..oci.errors import RegistryError
from ..transfer.upstream import Upstream


@dataclass(frozen=True, slots=True)
class RepositoryView:
    """One repository seen by the public (`reader` None) or with a client's own `Authorization` (`reader`).

    `own` is what a client of the public view could fetch with, on its own account.
    """

    upstream: Upstream
    repository: str
    authorization: str | None = None
    client_authorization: str | None = None
    client: str = ""
    """The address of who asks; what is fetched is shared out fairly by it."""

    @property
    def host(self) -> str:
        """The registry's host."""
        return self.upstream.registry.host

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for views that see the same; holds no credentials."""
        authorization = (
            ""
            if self.authorization is None
            else hashlib.sha256(self.authorization.encode(errors="surrogateescape")).hexdigest()
        )
        return self.host, self.repository, authorization

    def request_key(self, *what: str) -> str:
        """What was asked, for remembering that it is not there."""
        return " ".join((self.key[2], *what))

    @property
    def needs_anonymous_check(self) -> bool:
        """Whether a GET would be made with other credentials than the view's, and so prove nothing about the view."""
        return self.authorization is None and (
            self.client_authorization is not None or self.upstream.account is not None
        )

    async def download_authorizations(self) -> list[str | None]:
        """Credentials for a GET, in the order in which to try them.

        For what the public may see: the client's own (its pulls count on its account), the configured account's,
        none. The caller has made sure that the public may see it, by an anonymous request for the same just now.
        """
        if self.authorization is not None:
            return [self.authorization]
        found: list[str | None] = [] if self.client_authorization is None else [self.client_authorization]
        try:
            account = await self.upstream.account_authorization(self.repository)
        except RegistryError:
            account = None  # the token service refuses or is down; anonymous is what is left
        if account is not None:
            found.append(account)
        return [*found, None]

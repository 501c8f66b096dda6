"""The account for a registry, as configured."""

import base64
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, repr=False)
class Account:
    """User name and password for a token service. It has no repr, so that the password is not logged."""

    username: str
    password: str

    @property
    def authorization(self) -> str:
        """The value of `Authorization` (RFC 7617, in UTF-8)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

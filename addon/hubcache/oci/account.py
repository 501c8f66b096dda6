"""The configured account."""

import base64
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, repr=False)
class Account:
    """Name and password for a token service; without a repr, so that the password reaches no log."""

    username: str
    password: str

    @property
    def authorization(self) -> str:
        """The `Authorization` value (RFC 7617, UTF-8)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

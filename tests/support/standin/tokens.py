"""Accounts, permissions and bearer tokens of the stand-in Hub."""

import base64
import binascii
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Access = dict[str, frozenset[str]]


@dataclass(frozen=True)
class Token:
    """A token that was issued."""

    value: str
    user: str
    access: Access
    expires: float


@dataclass
class Accounts:
    """The accounts, the private repositories, and the issued tokens."""

    expires_in: int | None = 300
    """Lifetime of a token in seconds; None omits the field, which means 60."""
    passwords: dict[str, str] = field(default_factory=dict)
    private: dict[str, set[str]] = field(default_factory=dict)
    """Users of each private repository, which may pull and push."""
    tokens: dict[str, Token] = field(default_factory=dict)

    def login(self, authorization: str | None) -> str | None:
        """Return the user of a Basic header: empty without one, None when the credentials are wrong."""
        if authorization is None:
            return ""
        scheme, _, value = authorization.partition(" ")
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return user if scheme.lower() == "basic" and self.check(user, password) else None

    def check(self, user: str, password: str) -> bool:
        return self.passwords.get(user) == password and password != ""

    def granted(self, user: str, repo: str, exists: bool) -> frozenset[str]:
        """Return the actions that `user` (empty: anonymous) may perform on `repo`."""
        if repo in self.private:
            return frozenset({"pull", "push", "delete"} if user in self.private[repo] else ())
        owns = bool(user) and repo.startswith(user + "/")
        return frozenset({"pull", "push", "delete"} if owns else {"pull"} if exists else ())

    def issue(self, user: str, access: Access) -> Token:
        lifetime = 60 if self.expires_in is None else self.expires_in
        token = Token(f"hub-{user or 'anonymous'}-{secrets.token_hex(16)}", user, access, time.time() + lifetime)
        self.tokens[token.value] = token
        return token

    def revoke(self) -> None:
        """Let all issued tokens expire now."""
        for value, token in self.tokens.items():
            self.tokens[value] = Token(value, token.user, token.access, 0)

    def find(self, authorization: str | None) -> tuple[str, Token | None]:
        """Return the state of an `Authorization` header (none, valid, expired or unknown), and its token."""
        if authorization is None:
            return "none", None
        scheme, _, value = authorization.partition(" ")
        token = self.tokens.get(value.strip()) if scheme.lower() == "bearer" else None
        if token is None:
            return "unknown", None
        return ("valid", token) if token.expires > time.time() else ("expired", None)


def scopes(values: Iterable[str]) -> Mapping[str, frozenset[str]]:
    """Return repositories and actions of `repository:NAME:ACTION,…` scopes; other scopes are ignored."""
    wanted: dict[str, frozenset[str]] = {}
    for value in (part for line in values for part in line.split(" ")):
        if found := re.fullmatch(r"repository(?:\([a-z]+\))?:(.+):([a-z*,]+)", value):
            wanted[found[1]] = wanted.get(found[1], frozenset()) | set(found[2].split(","))
    return wanted

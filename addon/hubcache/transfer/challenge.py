"""`WWW-Authenticate: Bearer` challenges (RFC 6750 section 3; distribution spec, "Token Authentication")."""

import re
from dataclasses import dataclass
from typing import Self

MAX_CHALLENGE = 4096
"""Longest challenge that is parsed, in characters; those of real registries have about 200."""

_PARAMETER = re.compile(r'(?<![A-Za-z_])([A-Za-z_]++)\s*+=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


@dataclass(frozen=True, slots=True)
class Challenge:
    """A parsed `WWW-Authenticate: Bearer …` header."""

    realm: str
    service: str | None
    scope: str | None
    error: str | None = None

    @classmethod
    def parse(cls, header: str | None) -> Self | None:
        """Parse a header; returns None when it is absent, has another scheme, is too long or names no realm."""
        scheme, _, rest = (header or "").partition(" ")
        if scheme.lower() != "bearer" or len(rest) > MAX_CHALLENGE:
            return None
        fields: dict[str, str] = {}
        for name, quoted, plain in _PARAMETER.findall(rest):
            fields.setdefault(name.lower(), quoted or plain)  # keeps the first challenge of the header
        if not fields.get("realm"):
            return None
        return cls(fields["realm"], fields.get("service"), fields.get("scope"), fields.get("error"))

    def render(self) -> str:
        """Return the header value.

        `error` says what is wrong with the token that the request carried (RFC 6750 section 3). dockerd adds "may
        require 'docker login'" to its message only when the challenge has an `error`.
        """
        fields = {"realm": self.realm, "service": self.service, "scope": self.scope, "error": self.error}
        return "Bearer " + ",".join(f'{name}="{value}"' for name, value in fields.items() if value)

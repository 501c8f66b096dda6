"""Records of the requests that reached the stand-in Hub."""

import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass
class Record:
    """One request; `status`, `sent` (bytes of the body) and `finished` are set while the response is sent."""

    listener: str
    method: str
    path: str
    repo: str
    kind: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0
    token: str = "none"
    """State of the bearer token at the registry: none, valid, expired or unknown (never issued)."""
    user: str = ""
    started: float = field(default_factory=time.monotonic)
    finished: float | None = None
    remote: str = ""
    """The address that the connection came from."""

    @property
    def authorization(self) -> str | None:
        return self.header("Authorization")

    def header(self, name: str) -> str | None:
        """Return a request header by its case-insensitive name, None without one."""
        return next((value for key, value in self.headers.items() if key.lower() == name.lower()), None)

    def matches(self, **wanted: str | int | None) -> bool:
        """Whether each given field has its wanted value; text may be a glob."""
        for name, value in wanted.items():
            if value is None:
                continue
            own = getattr(self, name)
            if not (fnmatchcase(own, value) if isinstance(value, str) else own == value):
                return False
        return True

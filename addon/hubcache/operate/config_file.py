"""Reads option values from `hubcache.yaml`, at start and when the operator asks for it again."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from ..oci.errors import ConfigError
from .options import OPTIONS, convert_config_file, parse_yaml

FILE_NAME = "hubcache.yaml"
TEXT = "HUBCACHE_CONFIG_TEXT"
"""Environment variable with the text of the file as the owner process read it: a worker that starts later must not read
a newer text that the owner has not checked."""

_PREFIX = "hubcache_"
_OWN_NAME = "hubcache_config"
_MAX_BYTES = 64 << 10
"""Largest size of the file in bytes: Linux limits an environment variable to 128 KiB."""
_KNOWN = {each.name: each for each in OPTIONS if each.name != _OWN_NAME}


@dataclass(frozen=True, slots=True)
class Change:
    """The difference between two readings: values to set `now`, and names whose values need a restart (`later`)."""

    now: dict[str, Any]
    later: tuple[str, ...]

    def __str__(self) -> str:
        parts = []
        if self.now:
            parts.append("changed: " + ", ".join(f"{name}={value}" for name, value in self.now.items()))
        if self.later:
            parts.append("takes effect at the next start: " + ", ".join(self.later))
        return "; ".join(parts) or "nothing changed"


@dataclass(slots=True)
class ConfigFile:
    """The file's path and the values that are in force from it.

    A value of the command line (`fixed`) wins. `base` has the values of all options without the file, for names that
    are removed from it.
    """

    path: Path
    is_required: bool
    fixed: frozenset[str]
    base: Mapping[str, Any]
    text: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def find(cls, options: Any, fixed: frozenset[str]) -> Self:
        """Return the file that `hubcache_config` names, else `hubcache.yaml` beside mitmproxy's `config.yaml`."""
        base = {name: getattr(options, name) for name in _KNOWN}
        if named := options.hubcache_config:
            return cls(Path(named).expanduser().absolute(), True, fixed, base)
        return cls(Path(options.confdir).expanduser() / FILE_NAME, False, fixed, base)

    def read(self) -> str:
        """Return the text of the file, empty for a default file that does not exist; raises `ConfigError`."""
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
            if len(data) > _MAX_BYTES:
                raise ConfigError(f"{self.path} is too large; expected {_MAX_BYTES} bytes at most")
            return data.decode()
        except FileNotFoundError as error:
            if not self.is_required:
                return ""
            raise ConfigError(f"hubcache_config: {self.path} does not exist") from error
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.path} is not UTF-8") from error

    def load(self, options: Any, text: str) -> dict[str, Any]:
        """Return the values to set at start; raises `ConfigError`."""
        self.text, self.values = text, self._parse(text, options)
        return self.values

    def change_to(self, options: Any, text: str) -> Change:
        """Return what a new text changes; raises `ConfigError`. `accept` is to be called when it was applied."""
        values = self._parse(text, options)
        wanted = {name: values.get(name, self.base[name]) for name in (*self.values, *values)}
        changed = {name: value for name, value in wanted.items() if getattr(options, name) != value}
        for name, value in changed.items():
            _KNOWN[name].parse(value)
        return Change(
            {name: value for name, value in changed.items() if not _KNOWN[name].at_start},
            tuple(name for name in changed if _KNOWN[name].at_start),
        )

    def accept(self, options: Any, text: str) -> None:
        """Remember a text whose change was applied."""
        self.load(options, text)

    def _parse(self, text: str, options: Container[str]) -> dict[str, Any]:
        try:
            values = parse(text, options)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from error
        return {name: value for name, value in values.items() if name not in self.fixed}


def parse(text: str, other_options: Container[str] = ()) -> dict[str, Any]:
    """Return the values by the options' full names; raises `ConfigError` with all unknown names and wrong types.

    A name may lack the prefix `hubcache_`. `other_options` are mitmproxy's, which have a file of their own.
    """
    document = parse_yaml(text)
    if not isinstance(document, dict):
        raise ConfigError("expected lines such as 'size: 50G'")
    values: dict[str, Any] = {}
    complaints = []
    for name, value in document.items():
        full = _PREFIX + str(name).removeprefix(_PREFIX)
        if full not in _KNOWN:
            complaints.append(_complaint(str(name), other_options))
        elif full in values:
            complaints.append(f"{full} is set twice, with and without its prefix")
        values[full] = value
    if complaints:
        raise ConfigError(", and ".join(complaints))
    convert_config_file(values)
    return values


def _complaint(name: str, other_options: Container[str]) -> str:
    if name in other_options and name != _OWN_NAME:
        return f"{name} is an option of mitmproxy, which reads it from config.yaml"
    short = name.lower().replace("-", "_").removeprefix(_PREFIX)
    close = get_close_matches(short, [known.removeprefix(_PREFIX) for known in _KNOWN], 1)
    return f"{name} is not an option" + (f"; did you mean {close[0]}?" if close else "")

"""Declares a command line option as a field of a dataclass, in one entry: name, default, parser and help."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..oci.errors import ConfigError

_METADATA_KEY = "option"


@dataclass(frozen=True, slots=True)
class Option:
    """An option as `mitmdump --set NAME=VALUE` takes it.

    `help` is one sentence, for mitmweb and the README. With `at_start`, a change takes effect at the next start only.
    """

    name: str
    default: Any
    parser: Callable[[Any], Any]
    help: str
    at_start: bool

    @property
    def type(self) -> Any:
        """The type that mitmproxy checks values against: that of the default."""
        return Sequence[str] if isinstance(self.default, list) else type(self.default)

    def parse(self, value: Any) -> Any:
        """Return the checked value; raises `ConfigError` with the option's name in front."""
        try:
            return self.parser(value)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from error


def option[Raw, Value](
    name: str, default: Raw, parser: Callable[[Raw], Value], help: str, *, at_start: bool = False
) -> Value:
    """Declare a dataclass field whose value is that of an option, and whose default is the option's parsed default.

    `parser` gets the value as mitmproxy has it; it returns the field's value or raises `ConfigError` with what it got
    and what it expects. The declared return type is the field's, so that mypy compares it with the annotation.
    """
    declared = Option(name, default, parser, help, at_start)
    value: Value = dataclasses.field(
        default_factory=lambda: declared.parse(default), metadata={_METADATA_KEY: declared}
    )
    return value


def declared_options(settings: type) -> dict[str, Option]:
    """Return the options of a dataclass by the names of their fields, in the order of declaration."""
    found = {field.name: field.metadata.get(_METADATA_KEY) for field in dataclasses.fields(settings)}
    return {name: declared for name, declared in found.items() if declared is not None}

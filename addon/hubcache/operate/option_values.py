"""Parsers of option values: each returns the checked value, or raises `ConfigError` with what it got and expected."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

import platformdirs

from ..oci.account import Account
from ..oci.errors import ConfigError, RegistryError
from ..oci.image_name import ImageName
from ..oci.registry import HUB_HOST, Registry
from ..oci.registry_pattern import RegistryPattern, is_pattern, registry_named

type Network = IPv4Network | IPv6Network

_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_QUANTITY = re.compile(r"([0-9]+)\s*([A-Za-z]?)")
_SIZES = "such as 1000 (bytes), 500M, 50G or 2T"
_DURATIONS = "such as 60 (seconds), 10m, 12h, 30d or 2w"
_TUNNEL_PATTERN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.*_-]+)(?::([0-9]{1,5}|\*))?")
_BUCKET = re.compile(r"(?:s3|gs|az)://[0-9A-Za-z][0-9A-Za-z._-]+(?:/[0-9A-Za-z_-][0-9A-Za-z._-]*)*/?")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]*)(?::([0-9]{1,5}))?")
_MAX_WORKERS = 64


@dataclass(frozen=True, slots=True)
class Scrub:
    """The speed at which stored content is verified: all of it within `period` seconds, or `rate` bytes per second."""

    period: float | None = None
    rate: int | None = None


def unchanged[Raw](value: Raw) -> Raw:
    """Return a value that mitmproxy has checked already."""
    return value


def size(text: str) -> int:
    """Return the bytes of a size above 0."""
    found = _bytes(text)
    if not found:
        raise _unexpected(text, f"a size above 0, {_SIZES}")
    return found


def size_limit(text: str) -> int:
    """Return the bytes of a size above 0, or 0 for no limit when `text` is empty."""
    return size(text) if text else 0


def size_or_automatic(text: str) -> int | None:
    """Return the bytes of a size, which may be 0, or None when `text` is empty."""
    if not text:
        return None
    found = _bytes(text)
    if found is None:
        raise _unexpected(text, f"a size, {_SIZES}")
    return found


def duration(text: str) -> float:
    """Return the seconds of a duration, which may be 0."""
    found = _seconds(text)
    if found is None:
        raise _unexpected(text, f"a duration, {_DURATIONS}")
    return found


def duration_above_zero(text: str) -> float:
    """Return the seconds of a duration above 0."""
    found = _seconds(text)
    if not found:
        raise _unexpected(text, f"a duration above 0, {_DURATIONS}")
    return found


def scrub(text: str) -> Scrub | None:
    """Return the speed of verification, or None for 0 or nothing.

    A unit in lower case is a time where both exist: `10m` is 10 minutes, `10M` is 10 MiB per second. A number without
    a unit is bytes per second.
    """
    text = text.strip()
    if text in ("", "0"):
        return None
    if text[-1] in _SECONDS and _seconds(text):
        return Scrub(period=_seconds(text))
    rate = _bytes(text) if text[-1] not in _SECONDS else None
    if not rate:
        raise _unexpected(text, "a duration such as 12h or 30d, bytes per second such as 10M, or 0")
    return Scrub(rate=rate)


def count(value: int) -> int:
    """Return a number that is 0 or more."""
    if value < 0:
        raise _unexpected(value, "0 or more")
    return value


def per_minute(value: int) -> float:
    """Return a rate per second from one per minute."""
    return count(value) / 60


def choice(*choices: str) -> Callable[[str], str]:
    """Return a parser that accepts these texts only."""

    def parse(text: str) -> str:
        if text not in choices:
            raise _unexpected(text, f"one of {', '.join(choices)}")
        return text

    return parse


def is_choice(chosen: str, *others: str) -> Callable[[str], bool]:
    """Return a parser of a choice that returns whether it is `chosen`."""
    parse = choice(chosen, *others)
    return lambda text: parse(text) == chosen


def store_directory(text: str) -> Path:
    """Return the absolute path of the store; when `text` is empty, one in the platform's cache directory."""
    try:
        path = Path(text).expanduser() if text else platformdirs.user_cache_path("hubcache")
    except RuntimeError as error:
        raise ConfigError(f"{text!r} cannot be resolved: {error}; expected a directory") from error
    return path.absolute()


def file_path(text: str) -> Path | None:
    """Return the absolute path of a file, or None when `text` is empty."""
    return Path(text).absolute() if text else None


def registries(texts: Sequence[str]) -> tuple[Registry, ...]:
    """Return the registries that are no patterns, the default first; at least one, and no host twice.

    Where `*` is before all others, Docker Hub is the default.
    """
    registry_patterns(texts)  # raises for those that are malformed
    found = tuple(Registry.parse(text) for text in texts if not is_pattern(text))
    if texts and texts[0].strip() == "*":
        hub = next((registry for registry in found if registry.is_hub), Registry.parse(HUB_HOST))
        found = (hub, *(registry for registry in found if registry is not hub))
    if not found:
        raise ConfigError(f"no registry is given; expected at least one without a *, such as {HUB_HOST}")
    hosts = [registry.host for registry in found]
    for host in hosts:
        if hosts.count(host) > 1:
            raise ConfigError(f"{host} is given twice; expected each registry once")
    return found


def registry_patterns(texts: Sequence[str]) -> tuple[RegistryPattern, ...]:
    """Return the patterns among the registries."""
    return tuple(RegistryPattern.parse(text) for text in texts if is_pattern(text))


def pins(texts: Sequence[str]) -> tuple[ImageName, ...]:
    """Return the names of images."""
    try:
        return tuple(ImageName.parse(text) for text in texts)
    except RegistryError as error:
        raise ConfigError(f"{error.message}; expected an image such as debian:12") from error


def tunnel_patterns(texts: Sequence[str]) -> tuple[str, ...]:
    """Return patterns of hosts, in lower case."""
    for text in texts:
        if _TUNNEL_PATTERN.fullmatch(text.strip()) is None:
            raise _unexpected(text, "HOST or HOST:PORT, such as *.example.com:443")
    return tuple(text.strip().lower() for text in texts)


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Return IP networks."""
    try:
        return tuple(ip_network(text.strip()) for text in texts)
    except ValueError as error:
        raise ConfigError(f"{error}; expected networks such as 10.0.0.0/8 or ::1") from error


def listen_address(text: str) -> tuple[str, int] | None:
    """Return host and port, or None when `text` is empty."""
    if not text:
        return None
    host, separator, port = text.strip().rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise _unexpected(text, "HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def peer_listen_address(text: str) -> tuple[str, int]:
    """Return host and port; an empty host is all addresses of this machine."""
    host, port = _host_and_port(text)
    if host is None or port is None:
        raise _unexpected(text, "HOST:PORT or :PORT")
    return host, port


def peer_address(text: str) -> tuple[str, int | None] | None:
    """Return a host and its port, None where `text` has no port; None when `text` is empty."""
    if not text:
        return None
    host, port = _host_and_port(text)
    if not host:
        raise _unexpected(text, "HOST or HOST:PORT")
    return host, port


def bucket(text: str) -> str | None:
    """Return the URL of a bucket without a slash at its end, or None when `text` is empty."""
    if not text:
        return None
    if _BUCKET.fullmatch(text.strip()) is None:
        raise _unexpected(text, "a bucket such as s3://NAME, gs://NAME/PREFIX or az://NAME")
    return text.strip().rstrip("/")


def workers(text: str) -> int:
    """Return a number of processes; `auto` is one for each processor core that this process may use."""
    if text.strip().lower() == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or not 0 < int(text) <= _MAX_WORKERS:
        raise _unexpected(text, f"auto or a number from 1 to {_MAX_WORKERS}")
    return int(text)


def account(username: str, password_file: str) -> Account | None:
    """Return the account whose password is in a file, or None when both are empty."""
    if not username and not password_file:
        return None
    if not username or not password_file:
        missing = "hubcache_password_file" if username else "hubcache_username"
        raise ConfigError(f"hubcache_username and hubcache_password_file must be set together, but {missing} is empty")
    try:
        password = Path(password_file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"hubcache_password_file: {password_file} cannot be read: {error}") from error
    if not password:
        raise ConfigError(f"hubcache_password_file: {password_file} is empty; expected a password")
    return Account(username, password)


def check_pins(images: Sequence[ImageName], of: Sequence[Registry], patterns: Sequence[RegistryPattern] = ()) -> None:
    """Raise `ConfigError` unless all images are in one of these registries, or in one that a pattern permits."""
    hosts = [registry.host for registry in of]
    for image in images:
        named = registry_named(image.host)
        is_permitted = named is not None and any(each.matches(named.hostname, named.port) for each in patterns)
        if image.host not in hosts and not is_permitted:
            raise ConfigError(f"hubcache_pins: {image.host} of {image.repository} is not in hubcache_registries")


def _host_and_port(text: str) -> tuple[str | None, int | None]:
    """Split `HOST:PORT`, where either may be missing; returns no host for anything else.

    An IPv6 address must be in brackets.
    """
    found = _HOST_AND_PORT.fullmatch(text.strip())
    port = int(found[2]) if found and found[2] else None
    if found is None or (port is not None and not 0 < port < 65536):
        return None, None
    return found[1].removeprefix("[").removesuffix("]"), port


def _bytes(text: str) -> int | None:
    quantity = _QUANTITY.fullmatch(text.strip())
    unit = _BYTES.get(quantity[2].lower()) if quantity else None
    return int(quantity[1]) * unit if quantity and unit else None


def _seconds(text: str) -> float | None:
    quantity = _QUANTITY.fullmatch(text.strip())
    unit = _SECONDS.get(quantity[2] or "s") if quantity else None
    return int(quantity[1]) * unit if quantity and unit else None


def _unexpected(got: object, expected: str) -> ConfigError:
    return ConfigError(f"{got!r} is not {expected}")

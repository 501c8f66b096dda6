"""Option values as one frozen, checked `Settings`."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Self

import platformdirs
from mitmproxy import addonmanager
from mitmproxy.utils import human

from ..oci.account import Account
from ..oci.errors import ConfigError, RegistryError
from ..oci.image_name import ImageName
from ..oci.registry import HUB_HOST, Registry
from .option_table import OPTIONS

_MISSES = ("fetch", "notfound")


_MAX_WORKERS = 64


type Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Scrub:
    """How fast stored content is verified: all of it within `period` seconds, or `rate` bytes per second."""

    period: float | None = None
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked option values: `size` in bytes, times in seconds, `sync_rate` in requests per second, `status` None when
    there is no listener, `scrub` None when nothing is verified unasked."""

    directory: Path
    size: int
    admit_after: int
    half_life: float
    expire_after: float
    max_blob: int
    min_free: int | None
    pins: tuple[ImageName, ...]
    registries: tuple[Registry, ...]
    tag_ttl: float
    max_stale: float
    offline: bool
    negative_ttl: float
    authorize: bool
    account: Account | None
    ratelimit_reserve: int
    sync: bool
    sync_rate: float
    while_revalidate: float
    scrub: Scrub | None
    tunnel: tuple[str, ...]
    clients: tuple[Network, ...]
    offer_only: bool
    access_log: Path | None
    status: tuple[str, int] | None
    workers: int
    stop_within: float

    @classmethod
    def parse(cls, options: Any) -> Self:
        """Check the values of an options object; raises `ConfigError` that names the option."""
        registries = _registries(options.hubcache_registries)
        return cls(
            directory=_directory(options.hubcache_dir),
            size=_size("hubcache_size", options.hubcache_size),
            admit_after=int(_not_negative("hubcache_admit_after", options.hubcache_admit_after)),
            half_life=_positive("hubcache_half_life", options.hubcache_half_life),
            expire_after=_positive("hubcache_expire_after", options.hubcache_expire_after),
            max_blob=_size("hubcache_max_blob", options.hubcache_max_blob) if options.hubcache_max_blob else 0,
            min_free=_size("hubcache_min_free", options.hubcache_min_free, zero=True)
            if options.hubcache_min_free
            else None,
            pins=_pins(options.hubcache_pins, registries),
            registries=registries,
            tag_ttl=_not_negative("hubcache_tag_ttl", options.hubcache_tag_ttl),
            max_stale=_max_stale(options.hubcache_offline, options.hubcache_max_stale),
            offline=options.hubcache_offline,
            negative_ttl=_not_negative("hubcache_negative_ttl", options.hubcache_negative_ttl),
            authorize=_choice("hubcache_private", options.hubcache_private, ("bypass", "authorize")) == "authorize",
            account=_account(options.hubcache_username, options.hubcache_password_file),
            ratelimit_reserve=int(_not_negative("hubcache_ratelimit_reserve", options.hubcache_ratelimit_reserve)),
            sync=options.hubcache_sync,
            sync_rate=_not_negative("hubcache_sync_rate", options.hubcache_sync_rate) / 60,
            while_revalidate=_not_negative("hubcache_stale_while_revalidate", options.hubcache_stale_while_revalidate),
            scrub=_scrub(options.hubcache_scrub),
            tunnel=_tunnel(options.hubcache_tunnel),
            clients=_networks(options.hubcache_clients),
            offer_only=_choice("hubcache_mirror_miss", options.hubcache_mirror_miss, _MISSES) == "notfound",
            access_log=Path(options.hubcache_access_log).absolute() if options.hubcache_access_log else None,
            status=_address("hubcache_status", options.hubcache_status),
            workers=_workers(options.hubcache_workers),
            stop_within=_not_negative("hubcache_stop_within", options.hubcache_stop_within),
        )


def declare(loader: addonmanager.Loader) -> None:
    """Tell mitmproxy the option table."""
    for option in OPTIONS:
        loader.add_option(option.name, option.type, option.default, option.help)


def _directory(text: str) -> Path:
    try:
        path = Path(text).expanduser() if text else platformdirs.user_cache_path("hubcache")
    except RuntimeError as error:
        raise ConfigError(f"hubcache_dir: {error}; name a directory") from error
    return path.absolute()


def _size(name: str, text: str, *, zero: bool = False) -> int:
    try:
        size = human.parse_size(text.strip().lower())
    except ValueError:
        size = None
    if size is None or size < 0 or (size == 0 and not zero):
        raise ConfigError(f"{name}: {text!r} is not a size; expected a number of bytes or one like 500M, 50G or 2T")
    return size


def _registries(texts: Sequence[str]) -> tuple[Registry, ...]:
    try:
        registries = tuple(Registry.parse(text) for text in texts)
    except ConfigError as error:
        raise ConfigError(f"hubcache_registries: {error}") from error
    if not registries:
        raise ConfigError(f"hubcache_registries: nothing named; expected at least one, such as {HUB_HOST}")
    hosts = [registry.host for registry in registries]
    for host in hosts:
        if hosts.count(host) > 1:
            raise ConfigError(f"hubcache_registries: {host} is named twice")
    return registries


def _not_negative(name: str, value: int) -> float:
    if value < 0:
        raise ConfigError(f"{name}: {value} is negative; expected 0 or more")
    return float(value)


def _max_stale(offline: bool, seconds: int) -> float:
    checked = _not_negative("hubcache_max_stale", seconds)
    return math.inf if offline else checked


def _positive(name: str, value: int) -> float:
    if value <= 0:
        raise ConfigError(f"{name}: {value} is not a number of seconds above 0")
    return float(value)


def _pins(texts: Sequence[str], registries: Sequence[Registry]) -> tuple[ImageName, ...]:
    try:
        pins = tuple(ImageName.parse(text) for text in texts)
    except RegistryError as error:
        raise ConfigError(f"hubcache_pins: {error.message}; expected an image such as debian:12") from error
    for pin in pins:
        if pin.host not in [registry.host for registry in registries]:
            raise ConfigError(f"hubcache_pins: {pin.host} of {pin.repository} is not in hubcache_registries")
    return pins


def _choice(name: str, text: str, choices: Sequence[str]) -> str:
    if text not in choices:
        raise ConfigError(f"{name}: {text!r} is not one of {', '.join(choices)}")
    return text


def _account(username: str, password_file: str) -> Account | None:
    if not username and not password_file:
        return None
    if not username or not password_file:
        raise ConfigError("hubcache_username and hubcache_password_file go together; only one is set")
    try:
        password = Path(password_file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"hubcache_password_file: {password_file} cannot be read: {error}") from error
    if not password:
        raise ConfigError(f"hubcache_password_file: {password_file} is empty")
    return Account(username, password)


def _workers(text: str) -> int:
    if text.strip().lower() == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or not 0 < int(text) <= _MAX_WORKERS:
        raise ConfigError(f"hubcache_workers: {text!r} is not auto or a number from 1 to {_MAX_WORKERS}")
    return int(text)


_PERIODS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def _scrub(text: str) -> Scrub | None:
    """`30d` is a time, `10M` a size per second: periods are lower case, and m is minutes."""
    text = text.strip()
    if text in ("", "0"):
        return None
    number, unit = text[:-1], text[-1]
    if unit in _PERIODS and number.isdecimal() and int(number) > 0:
        return Scrub(period=int(number) * _PERIODS[unit])
    try:
        return Scrub(rate=_size("hubcache_scrub", text))
    except ConfigError as error:
        raise ConfigError(
            f"hubcache_scrub: {text!r} is neither a time such as 30d or 12h nor bytes per second such as 10M"
        ) from error


_PATTERN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.*_-]+)(?::([0-9]{1,5}|\*))?")


def _tunnel(texts: Sequence[str]) -> tuple[str, ...]:
    """Patterns in lower case."""
    for text in texts:
        if _PATTERN.fullmatch(text.strip()) is None:
            raise ConfigError(f"hubcache_tunnel: {text!r} is not HOST or HOST:PORT, such as *.example.com:443")
    return tuple(text.strip().lower() for text in texts)


def _networks(texts: Sequence[str]) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(text.strip()) for text in texts)
    except ValueError as error:
        raise ConfigError(f"hubcache_clients: {error}; expected networks such as 10.0.0.0/8 or ::1") from error


def _address(name: str, text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, separator, port = text.strip().rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{name}: {text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)

"""The option table, and its values as one frozen, checked `Settings`."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import platformdirs
from mitmproxy import addonmanager
from mitmproxy.utils import human

from ..oci.account import Account
from ..oci.errors import ConfigError, RegistryError
from ..oci.pin import Pin
from ..oci.registry import HUB_HOST, Registry


@dataclass(frozen=True, slots=True)
class Option:
    """One option as `mitmdump --set NAME=VALUE` takes it; `help` is shown by `--options` and in the README."""

    name: str
    type: Any
    default: Any
    help: str


OPTIONS = (
    Option(
        "hubcache_dir",
        str,
        "",
        "Directory of the store. Empty: the platform's cache directory (on Linux $XDG_CACHE_HOME/hubcache or "
        "~/.cache/hubcache). Takes effect at start.",
    ),
    Option(
        "hubcache_size",
        str,
        "50G",
        "Hard cap on the store's bytes, content being fetched included. Understands k, m, g and t (powers of 1024). "
        "What is asked for least, for its size, is removed to stay below it.",
    ),
    Option(
        "hubcache_admit_after",
        int,
        2,
        "When the store is full, content is stored only after so many requests (half of them no older than "
        "hubcache_half_life); until then it is passed on.",
    ),
    Option("hubcache_half_life", int, 7 * 86400, "Seconds after which a request counts half in what is kept."),
    Option("hubcache_expire_after", int, 30 * 86400, "Content that nobody asked for in so many seconds is removed."),
    Option("hubcache_max_blob", str, "", "Blobs larger than this are passed on and not stored. Empty: no limit."),
    Option(
        "hubcache_min_free",
        str,
        "",
        "Free space to leave on the file system: the store shrinks when others fill it. A size, or 0. Empty: 1G, or a "
        "twentieth of the file system where that is less.",
    ),
    Option(
        "hubcache_pins",
        Sequence[str],
        [],
        "Images that are never removed, such as debian:12 or ghcr.io/owner/name:tag.",
    ),
    Option(
        "hubcache_registries",
        Sequence[str],
        [HUB_HOST],
        "Registries to cache, each HOST or HOST=UPSTREAM_URL; everything else is tunnelled untouched.",
    ),
    Option(
        "hubcache_tag_ttl",
        int,
        60,
        "Seconds for which a tag is served without asking the registry whether it moved; 0 = ask each time.",
    ),
    Option(
        "hubcache_max_stale",
        int,
        30 * 86400,
        "Seconds for which a tag may still be served after its lifetime when the registry does not answer; 0 = never.",
    ),
    Option(
        "hubcache_offline",
        bool,
        False,
        "Never contact a registry: serve what is stored, however old, and nothing else.",
    ),
    Option(
        "hubcache_negative_ttl",
        int,
        30,
        "Seconds for which 'not found' and 'not public' are remembered.",
    ),
    Option(
        "hubcache_private",
        str,
        "bypass",
        "What to do with repositories that need a login: 'bypass' passes them through and stores nothing, 'authorize' "
        "stores them and asks the registry with the client's own token before each use.",
    ),
    Option(
        "hubcache_username",
        str,
        "",
        "Docker Hub account whose pulls count when a client has none of its own. Only public images are read with it.",
    ),
    Option(
        "hubcache_password_file",
        str,
        "",
        "File that holds the account's password or access token. Read at start.",
    ),
    Option(
        "hubcache_ratelimit_reserve",
        int,
        10,
        "Pulls of the registry's rate limit that are left to clients: with fewer remaining, nothing is fetched ahead.",
    ),
    Option(
        "hubcache_sync",
        bool,
        True,
        "Validate tags that are asked for often before they go stale, and fetch ahead what they moved to.",
    ),
    Option(
        "hubcache_mirror_miss",
        str,
        "fetch",
        "What the mirror door does with an image that is not stored whole: 'fetch' gets it from the registry, "
        "'notfound' answers 404, counts, and fetches it in the background after hubcache_admit_after requests.",
    ),
    Option(
        "hubcache_access_log",
        str,
        "",
        "File to which a JSON line is appended for each manifest and blob; scripts/simulate replays it. Empty: none.",
    ),
    Option(
        "hubcache_status",
        str,
        "127.0.0.1:9180",
        "HOST:PORT of the status listener (/healthz, /metrics); empty = none. Takes effect at start.",
    ),
    Option(
        "hubcache_workers",
        str,
        "1",
        "Processes that speak with clients: a number, or auto for one per core. More than 1 only in mitmdump, and not "
        "when flows are saved to a file. Takes effect at start.",
    ),
)


_MISSES = ("fetch", "notfound")


_MAX_WORKERS = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked option values: `size` in bytes, `tag_ttl` in seconds, `status` None when there is no listener."""

    directory: Path
    size: int
    admit_after: int
    half_life: float
    expire_after: float
    max_blob: int
    min_free: int | None
    pins: tuple[Pin, ...]
    registries: tuple[Registry, ...]
    tag_ttl: float
    max_stale: float
    offline: bool
    negative_ttl: float
    authorize: bool
    account: Account | None
    ratelimit_reserve: int
    sync: bool
    offer_only: bool
    access_log: Path | None
    status: tuple[str, int] | None
    workers: int

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
            offer_only=_choice("hubcache_mirror_miss", options.hubcache_mirror_miss, _MISSES) == "notfound",
            access_log=Path(options.hubcache_access_log).absolute() if options.hubcache_access_log else None,
            status=_address("hubcache_status", options.hubcache_status),
            workers=_workers(options.hubcache_workers),
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


def _pins(texts: Sequence[str], registries: Sequence[Registry]) -> tuple[Pin, ...]:
    try:
        pins = tuple(Pin.parse(text) for text in texts)
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


def _address(name: str, text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, separator, port = text.strip().rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{name}: {text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)

"""Contains all options, each declared once, and `Settings`, their checked values."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from mitmproxy import addonmanager, exceptions, optmanager
from mitmproxy.utils import typecheck

from ..oci.account import Account
from ..oci.errors import ConfigError
from ..oci.image_name import ImageName
from ..oci.registry import HUB_HOST, Registry
from ..oci.registry_pattern import RegistryPattern
from . import option_values as values
from .option import declared_options, option
from .option_values import Network, Scrub

_PREFIX = "hubcache"
_YAML_TYPES = (bool, int, float, str, list, dict, type(None))


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked option values; without arguments, the defaults.

    Sizes are in bytes, durations in seconds, and rates per second. To add an option, declare it here and use it.
    """

    directory: Path = option(
        "hubcache_dir",
        "",
        values.store_directory,
        "Directory of the store, or when empty the platform's cache directory (on Linux $XDG_CACHE_HOME/hubcache or "
        "~/.cache/hubcache); a change takes effect at the next start.",
        at_start=True,
    )
    size: int = option(
        "hubcache_size",
        "50G",
        values.size,
        "Capacity of the store, a hard limit that includes unfinished downloads; to stay below it, the content with "
        "the fewest requests for its size is removed.",
    )
    admit_after: int = option(
        "hubcache_admit_after",
        2,
        values.count,
        "Number of requests, which lose weight with hubcache_half_life, after which content is admitted to a full "
        "store; until then it is passed to the client without being stored.",
    )
    half_life: float = option(
        "hubcache_half_life",
        "7d",
        values.duration_above_zero,
        "Duration after which a request counts half when the store chooses the content to keep.",
    )
    expire_after: float = option(
        "hubcache_expire_after",
        "30d",
        values.duration_above_zero,
        "Duration after its last request at which content is removed.",
    )
    max_blob: int = option(
        "hubcache_max_blob",
        "",
        values.size_limit,
        "Size above which a blob is passed to the client without being stored, or empty for no limit.",
    )
    min_free: int | None = option(
        "hubcache_min_free",
        "",
        values.size_or_automatic,
        "Free space to leave on the file system, for which the store shrinks when other programs use more; when empty, "
        "the smaller of 1G and a twentieth of the file system.",
    )
    scrub: Scrub | None = option(
        "hubcache_scrub",
        "30d",
        values.scrub,
        "Duration in which all stored content is read and verified once (12h, 30d), or bytes per second to verify "
        "(10M), or 0 for never.",
    )
    pins: tuple[ImageName, ...] = option(
        "hubcache_pins",
        [],
        values.pins,
        "Images that are never removed, such as debian:12 or ghcr.io/owner/name:tag.",
    )
    registries: tuple[Registry, ...] = option(
        "hubcache_registries",
        [HUB_HOST],
        values.registries,
        "Registries to cache, each HOST or HOST=UPSTREAM_URL, and patterns of others that clients may name: *.DOMAIN, "
        "or * at mirrors only; connections to all other hosts are tunnelled unchanged.",
    )
    registry_patterns: tuple[RegistryPattern, ...] = ()
    """The patterns among the values of `registries`."""
    tunnel: tuple[str, ...] = option(
        "hubcache_tunnel",
        ["*"],
        values.tunnel_patterns,
        "Other hosts that clients may reach through the proxy, as HOST or HOST:PORT with * for any characters; "
        "loopback, link-local and the cache's own addresses are refused unless named without a *.",
    )
    clients: tuple[Network, ...] = option(
        "hubcache_clients",
        [],
        values.networks,
        "Networks whose clients are served, such as 10.0.0.0/8, or empty for all that mitmproxy's block_global allows.",
    )
    tag_ttl: float = option(
        "hubcache_tag_ttl",
        "1m",
        values.duration,
        "Freshness lifetime of a tag, during which it is served without a request to the registry; 0 validates it for "
        "each request.",
    )
    max_stale: float = option(
        "hubcache_max_stale",
        "30d",
        values.duration,
        "Duration after its freshness lifetime for which a tag may be served when the registry does not answer, or 0 "
        "for never.",
    )
    offline: bool = option(
        "hubcache_offline",
        False,
        values.unchanged,
        "Never contact a registry, and serve stored content only, regardless of its age.",
    )
    negative_ttl: float = option(
        "hubcache_negative_ttl",
        "30s",
        values.duration,
        "Duration for which the answers 'not found' and 'not public' of a registry are cached.",
    )
    authorize: bool = option(
        "hubcache_private",
        "bypass",
        values.is_choice("authorize", "bypass"),
        "Treatment of repositories that need a login: 'bypass' forwards requests and stores nothing, 'authorize' "
        "stores content and sends the client's own token to the registry before each use.",
    )
    username: str = option(
        "hubcache_username",
        "",
        values.unchanged,
        "Docker Hub account with which public images are pulled for clients that have none of their own.",
    )
    password_file: str = option(
        "hubcache_password_file",
        "",
        values.unchanged,
        "File with the password or access token of hubcache_username, read at start and when an option changes.",
    )
    account: Account | None = None
    """The account of `username`, with the password that `parse` read from `password_file`."""
    ratelimit_reserve: int = option(
        "hubcache_ratelimit_reserve",
        10,
        values.count,
        "Pulls of the registry's rate limit that are reserved for clients: with fewer remaining, nothing is "
        "prefetched.",
    )
    sync: bool = option(
        "hubcache_sync",
        True,
        values.unchanged,
        "Validate frequently requested tags before they become stale, and prefetch the content of those that moved.",
    )
    sync_rate: float = option(
        "hubcache_sync_rate",
        60,
        values.per_minute,
        "Average number of requests per minute and registry that hubcache_sync may make, for the most requested tags "
        "first.",
    )
    while_revalidate: float = option(
        "hubcache_stale_while_revalidate",
        "0",
        values.duration,
        "Duration after its freshness lifetime for which a tag is served at once while it is revalidated (RFC 5861 "
        "section 3), or 0 to let the client wait for the registry.",
    )
    offer_only: bool = option(
        "hubcache_mirror_miss",
        "fetch",
        values.is_choice("notfound", "fetch"),
        "Answer at the mirror port for an image that is not stored completely: 'fetch' gets it from the registry, "
        "'notfound' answers 404 and fetches it in the background after hubcache_admit_after requests.",
    )
    mirror_certificate: Path | None = option(
        "hubcache_mirror_certificate",
        "",
        values.file_path,
        "PEM file with a private key and the certificate chain of the mirror's host name, with which the mirror port "
        "serves TLS beside plain HTTP, or empty for plain HTTP only; SIGHUP reads the file again.",
    )
    log_as_json: bool = option(
        "hubcache_log_format",
        "text",
        values.is_choice("json", "text"),
        "Format of the log: 'text', or 'json' for one JSON object per line, which has all numbers of a pull.",
    )
    access_log: Path | None = option(
        "hubcache_access_log",
        "",
        values.file_path,
        "File to which a JSON line is appended for each served manifest and blob, which scripts/simulate can replay, "
        "or empty for none.",
    )
    status: tuple[str, int] | None = option(
        "hubcache_status",
        "127.0.0.1:9180",
        values.listen_address,
        "HOST:PORT of the status listener (/healthz, /metrics), or empty for none; a change takes effect at the next "
        "start.",
        at_start=True,
    )
    max_flows: int = option(
        "hubcache_max_flows",
        2000,
        values.count,
        "Number of requests that mitmweb and mitmproxy's console list: after that, the oldest ones that ended are "
        "removed, except those that the user marked; 0 for no limit.",
    )
    workers: int = option(
        "hubcache_workers",
        "1",
        values.workers,
        "Number of processes that serve clients, or auto for one per core; more than 1 works only in mitmdump that "
        "saves no flows to a file, and a change takes effect at the next start.",
        at_start=True,
    )
    bucket: str | None = option(
        "hubcache_bucket",
        "",
        values.bucket,
        "Bucket that several caches share as a fleet, as s3://NAME, gs://NAME or az://NAME with an optional /PREFIX; "
        "its endpoint and credentials come from the usual environment variables and files (AWS_ENDPOINT_URL, "
        "AWS_ACCESS_KEY_ID), and when empty the cache works alone; a change takes effect at the next start.",
        at_start=True,
    )
    bucket_size: int = option(
        "hubcache_bucket_size",
        "100G",
        values.size,
        "Capacity of the bucket, a hard limit for the blobs that the fleet stores there, which must be the same at all "
        "nodes; a change takes effect at the next start.",
        at_start=True,
    )
    bucket_private: bool = option(
        "hubcache_bucket_private",
        False,
        values.unchanged,
        "Store content of repositories that need a login in the bucket too, where hubcache_private is 'authorize' and "
        "each use is authorized by the registry with the client's own token; a change takes effect at the next start.",
        at_start=True,
    )
    peer_listen: tuple[str, int] = option(
        "hubcache_peer_listen",
        ":5002",
        values.peer_listen_address,
        "HOST:PORT at which the other nodes of the fleet reach this one, with an empty HOST for all addresses of this "
        "machine; a change takes effect at the next start.",
        at_start=True,
    )
    peer_address: tuple[str, int | None] | None = option(
        "hubcache_peer_address",
        "",
        values.peer_address,
        "HOST or HOST:PORT to which the other nodes of the fleet connect, or empty for the address of the interface "
        "that reaches the bucket, with the port of hubcache_peer_listen; a change takes effect at the next start.",
        at_start=True,
    )
    config: Path | None = option(
        "hubcache_config",
        "",
        values.file_path,
        "YAML file with values for these options, named with or without hubcache_, which is read again at SIGHUP, or "
        "empty for hubcache.yaml beside mitmproxy's config.yaml, if it exists; values of the command line win, and "
        "another file takes effect at the next start.",
        at_start=True,
    )
    stop_within: float = option(
        "hubcache_stop_within",
        "30s",
        values.duration,
        "Duration for which running downloads may continue after SIGTERM; a second signal ends them at once.",
    )

    @classmethod
    def parse(cls, options: Any) -> Self:
        """Check the values of mitmproxy's options; raises `ConfigError` that names the option."""
        fields = declared_options(cls)
        settings = cls(**{field: each.parse(getattr(options, each.name)) for field, each in fields.items()})
        patterns = values.registry_patterns(options.hubcache_registries)
        values.check_pins(settings.pins, settings.registries, patterns)
        return replace(
            settings,
            registry_patterns=patterns,
            account=values.account(settings.username, settings.password_file),
            max_stale=math.inf if settings.offline else settings.max_stale,
        )

    def check_change_to(self, changed: Self) -> None:
        """Raise `ConfigError` when a value differs that cannot change while the program runs."""
        for field, each in declared_options(type(self)).items():
            if each.at_start and getattr(changed, field) != getattr(self, field):
                raise ConfigError(f"{each.name} takes effect at start only")


OPTIONS = tuple(declared_options(Settings).values())


def declare(loader: addonmanager.Loader) -> None:
    """Add all options to mitmproxy's."""
    for each in OPTIONS:
        loader.add_option(each.name, each.type, each.default, each.help)


def check_names(given: Iterable[str]) -> None:
    """Raise `ConfigError` for unknown names that begin with the prefix of this program's options.

    mitmproxy keeps unknown names of the command line and of `config.yaml` for addons that may be loaded later.
    """
    known = [each.name for each in OPTIONS]
    complaints = []
    for name in given:
        lowered = name.lower().replace("-", "_")
        if lowered.startswith(_PREFIX) and name not in known:
            close = get_close_matches(lowered, known, 1)
            complaints.append(f"{name} is not an option" + (f"; did you mean {close[0]}?" if close else ""))
    if complaints:
        raise ConfigError(", and ".join(complaints))


def parse_yaml(text: str) -> object:
    """Return the document in a config file, `{}` for an empty one; raises `ConfigError` with one line."""
    try:
        return optmanager.parse(text)
    except exceptions.OptionsError as error:
        first, *snippet = str(error).splitlines()
        raise ConfigError(" ".join([first, *snippet[-1:]])) from error


def command_line_names(given: Mapping[str, Any]) -> frozenset[str]:
    """Return the names among mitmproxy's deferred options that the command line sets, not a `config.yaml`."""
    return frozenset(name for name, value in given.items() if not isinstance(value, _YAML_TYPES))


def convert_config_file(given: dict[str, Any]) -> None:
    """Convert values of a `config.yaml` that mitmproxy has deferred; raises `ConfigError` for those of a wrong type.

    A number such as `30` becomes text when the option also accepts text such as `30d`. A value of a wrong type is
    removed, because mitmproxy would read it again and raise a `TypeError`. Values of the command line have another
    type, which mitmproxy converts.
    """
    complaints = []
    for each in OPTIONS:
        if each.name not in given:
            continue
        value = given[each.name]
        if each.type is str and type(value) is int:
            given[each.name] = str(value)
        elif isinstance(value, _YAML_TYPES):
            try:
                typecheck.check_option_type(each.name, value, each.type)
            except TypeError:
                del given[each.name]
                complaints.append(f"{each.name}: {value!r} is not of type {typecheck.typespec_to_str(each.type)}")
    if complaints:
        raise ConfigError(", and ".join(complaints))

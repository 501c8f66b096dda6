"""All options: name, type, default and help. Their values are checked in `options`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..oci.registry import HUB_HOST


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
        "hubcache_scrub",
        str,
        "30d",
        "Time in which all stored content is read and verified once (12h, 30d), or bytes per second to read (10M); "
        "0 = never.",
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
        "hubcache_tunnel",
        Sequence[str],
        ["*"],
        "Other hosts that clients may reach through the proxy, as HOST or HOST:PORT with * for any characters. "
        "Loopback, link-local and the cache's own addresses are refused unless named without a *.",
    ),
    Option(
        "hubcache_clients",
        Sequence[str],
        [],
        "Networks whose clients are served, such as 10.0.0.0/8. Empty: all that mitmproxy's block_global allows.",
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
        "hubcache_sync_rate",
        int,
        60,
        "Requests per minute and registry that hubcache_sync may make on average; the tags asked for most come first.",
    ),
    Option(
        "hubcache_stale_while_revalidate",
        int,
        0,
        "Seconds after its lifetime for which a tag is still served at once while the registry is asked about it "
        "(RFC 5861 section 3); 0 = the client waits for the registry.",
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
    Option(
        "hubcache_stop_within",
        int,
        30,
        "Seconds for which running downloads may go on after SIGTERM; a second signal ends them at once.",
    ),
)

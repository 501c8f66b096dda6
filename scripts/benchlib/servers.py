"""What is measured: our cache and its peers, each with a TLS listener on loopback."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .certificates import Certificates
from .nginx import nginx, tls
from .processes import BenchError, free_port, listening, running
from .upstream import Upstream

HUB = "registry-1.docker.io"
MANY_BLOBS = 100_000
_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Setup:
    """What starting a server needs. `python` runs ours with `options` as further mitmdump arguments; `tools` has
    programs installed for this run; `workers` is for those that have such a setting; `other` is a checkout."""

    directory: Path
    upstream: Upstream
    certificates: Certificates
    python: Path
    options: Sequence[str]
    tools: Path
    workers: int
    other: Path | None


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: `origin` is where clients address requests to, through `proxy` (`HOST:PORT`) if there is one;
    `trust` is a directory with the authority that they trust. `registry` is what stands before an image's name."""

    name: str
    pid: int
    origin: str
    registry: str
    trust: Path
    proxy: str | None = None
    headers: tuple[str, ...] = field(default=())
    started_in: float = 0.0
    """Seconds until it listened."""


def ours(setup: Setup) -> AbstractContextManager[Server]:
    """The cache of this checkout, in one process."""
    return _cache("ours", _REPOSITORY, setup)


def all_ours(setup: Setup) -> AbstractContextManager[Server]:
    """The cache of this checkout, with as many workers as nginx has."""
    return _cache("ours-workers", _REPOSITORY, setup, "--set", f"hubcache_workers={setup.workers}")


def full_ours(setup: Setup) -> AbstractContextManager[Server]:
    """The cache of this checkout, with a store of `MANY_BLOBS` blobs."""
    store = setup.directory / "ours-many" / "store"
    store.mkdir(parents=True)
    command = [setup.python, Path(__file__).with_name("filler.py"), store, str(MANY_BLOBS)]
    environment = os.environ | {"PYTHONPATH": str(_REPOSITORY / "addon")}
    made = subprocess.run(command, env=environment, capture_output=True, timeout=600, check=False)
    if made.returncode != 0:
        raise BenchError(f"the store could not be filled: {made.stderr.decode(errors='replace')[-300:]}")
    return _cache("ours-many", _REPOSITORY, setup)


def other(setup: Setup) -> AbstractContextManager[Server]:
    """The cache of another checkout, for a before and an after in one run."""
    if setup.other is None:
        raise BenchError("--other is not given")
    return _cache("other", setup.other, setup)


@contextmanager
def _cache(name: str, checkout: Path, setup: Setup, *more: str) -> Iterator[Server]:
    """Reached by CONNECT, as dockerd reaches it through HTTPS_PROXY; with the CA that users of the checkout have."""
    directory = setup.directory / name
    directory.mkdir(parents=True, exist_ok=True)
    proxy, mirror, status = free_port(), free_port(), free_port()
    options = {
        "hubcache_dir": directory / "store",
        "hubcache_registries": f"{HUB}={setup.upstream.url}",
        "hubcache_size": "40G",
        "hubcache_status": f"127.0.0.1:{status}",
        "ssl_verify_upstream_trusted_ca": setup.certificates.authority,
    }
    command: list[object] = [setup.python.parent / "mitmdump", "-q", "-s", checkout / "addon" / "cache.py"]
    command += ["--mode", f"regular@127.0.0.1:{proxy}", "--mode", f"reverse:https://{HUB}@127.0.0.1:{mirror}"]
    for option, value in options.items():
        command += ["--set", f"{option}={value}"]
    began = time.monotonic()
    with running([*command, *setup.options, *more], directory, listening(proxy, mirror, status), seconds=60) as pid:
        seconds = time.monotonic() - began
        authority = checkout / "certs" / "mitmproxy-ca-cert.pem"
        if not authority.exists():
            raise BenchError(f"{name} made no {authority}")
        trust = directory / "trust"
        trust.mkdir()
        (trust / "ca.pem").write_bytes(authority.read_bytes())
        yield Server(name, pid, f"https://{HUB}", "docker.io", trust, f"127.0.0.1:{proxy}", started_in=seconds)


@contextmanager
def direct(setup: Setup) -> Iterator[Server]:
    """No cache at all: clients ask the upstream themselves."""
    place = setup.upstream.url.removeprefix("https://")
    yield Server("direct", setup.upstream.pid, setup.upstream.url, place, setup.certificates.directory)


@contextmanager
def static_nginx(setup: Setup) -> Iterator[Server]:
    """nginx with the files themselves: the least that any server can do."""
    port = free_port()
    http = f"access_log off; server {{ {tls(setup.certificates, port)} root {setup.upstream.images.root}; }}"
    with nginx(setup.directory / "nginx", setup.workers, http, port) as pid:
        yield _direct("nginx", pid, port, setup)


_CACHING = """
    access_log off;
    proxy_cache_path {cache} levels=1:2 max_size=40g inactive=60d keys_zone=cache:10m use_temp_path=off;
    server {{
        {listener}
        proxy_read_timeout 900;
        proxy_cache_lock on;
        proxy_cache_lock_timeout 880s;
        proxy_cache_lock_age 880s;
        proxy_cache_valid 200 206 365d;
        proxy_force_ranges on;
        proxy_ignore_client_abort on;
        proxy_cache_revalidate on;
        proxy_hide_header Set-Cookie;
        proxy_ignore_headers X-Accel-Expires Expires Cache-Control Set-Cookie;
        proxy_ssl_server_name on;
        proxy_intercept_errors on;
        error_page 301 302 307 = @handle_redirects;
        location ~ ^/v2/(.*)/blobs/sha256: {{
            proxy_pass {upstream};
            proxy_cache cache;
            proxy_cache_key $uri;
        }}
        location ~ ^/v2/(.*)/manifests/sha256: {{
            proxy_pass {upstream};
            proxy_cache cache;
            proxy_cache_key $uri;
        }}
        location @handle_redirects {{
            set $original_uri $uri;
            set $location $upstream_http_location;
            proxy_set_header Authorization "";
            proxy_pass $location;
            proxy_cache cache;
            proxy_cache_key $original_uri;
        }}
        location / {{ proxy_pass {upstream}; }}
    }}
"""


@contextmanager
def caching_nginx(setup: Setup) -> Iterator[Server]:
    """nginx `proxy_cache` with the settings of rpardini/docker-registry-proxy: a cache lock, redirects followed inside.

    It is reached without CONNECT, which Debian's nginx cannot do; that spares it work that ours has. Blobs have the
    same key before and after the redirect (there they differ, and every hit asks the registry for the redirect again).
    """
    port = free_port()
    directory = setup.directory / "nginx-cache"
    http = _CACHING.format(
        cache=directory / "cache", listener=tls(setup.certificates, port), upstream=setup.upstream.url
    )
    with nginx(directory, setup.workers, http, port) as pid:
        yield _direct("nginx-cache", pid, port, setup, "Authorization: Bearer bench")


_DISTRIBUTION = """\
version: 0.1
log: {{ level: error, accesslog: {{ disabled: true }} }}
storage: {{ filesystem: {{ rootdirectory: {directory}/store }}, cache: {{ blobdescriptor: inmemory }} }}
http: {{ addr: "127.0.0.1:{port}", tls: {{ certificate: {certificate}, key: {key} }} }}
proxy: {{ remoteurl: "{upstream}" }}
"""


@contextmanager
def distribution(setup: Setup) -> Iterator[Server]:
    """CNCF distribution (Debian's docker-registry) as a pull-through cache."""
    port = free_port()
    directory = setup.directory / "docker-registry"
    directory.mkdir(parents=True)
    config = directory / "config.yml"
    config.write_text(
        _DISTRIBUTION.format(
            directory=directory,
            port=port,
            certificate=setup.certificates.certificate,
            key=setup.certificates.key,
            upstream=setup.upstream.url,
        )
    )
    trust = {"SSL_CERT_FILE": str(setup.certificates.authority)}
    command = ["docker-registry", "serve", config]
    with running(command, directory, listening(port), trust) as pid:
        yield _direct("docker-registry", pid, port, setup)


_DRAYAGE = """\
listen = "127.0.0.1:{plain}"
cache_dir = "{directory}/store"
manifest_ttl_seconds = 900
tls_listen = "127.0.0.1:{port}"
ca_cert_path = "{directory}/ca/ca.crt"
ca_key_path = "{directory}/ca/ca.key"

[upstreams.docker_io]
registry = "{upstream}"
"""


@contextmanager
def drayage(setup: Setup) -> Iterator[Server]:
    """drayage, which makes certificates for the name that a client asks for, as ours does.

    It trusts none but the built-in authorities, so its upstream is the same stand-in without TLS.
    """
    program = setup.tools / "bin" / "drayage"
    if not program.exists():
        raise BenchError(f"{program} is not there; `pip install drayage` did not work")
    plain, port = free_port(), free_port()
    directory = setup.directory / "drayage"
    directory.mkdir(parents=True)
    (directory / "store").mkdir(parents=True)
    made = subprocess.run([program, "gen-ca", "--dir", directory / "ca"], capture_output=True, timeout=30, check=False)
    if made.returncode != 0:
        raise BenchError(f"drayage could not make its authority: {made.stderr.decode(errors='replace').strip()}")
    config = directory / "config.toml"
    config.write_text(_DRAYAGE.format(plain=plain, port=port, directory=directory, upstream=setup.upstream.plain_url))
    with running([program, "serve", "--config", config], directory, listening(plain, port)) as pid:
        trust = directory / "trust"
        trust.mkdir()
        (trust / "ca.pem").write_bytes((directory / "ca" / "ca.crt").read_bytes())
        yield Server("drayage", pid, f"https://localhost:{port}", f"localhost:{port}", trust)


def _direct(name: str, pid: int, port: int, setup: Setup, *headers: str) -> Server:
    place = f"localhost:{port}"
    return Server(name, pid, f"https://{place}", place, setup.certificates.directory, headers=headers)


STARTS: dict[str, Callable[[Setup], AbstractContextManager[Server]]] = {
    "ours": ours,
    "ours-workers": all_ours,
    "ours-many": full_ours,
    "other": other,
    "direct": direct,
    "nginx": static_nginx,
    "nginx-cache": caching_nginx,
    "docker-registry": distribution,
    "drayage": drayage,
}
"""Every server by name; `direct` is the upstream and `nginx` has the files, all others must fetch them."""

CACHES = ("ours", "ours-workers", "nginx-cache", "docker-registry", "drayage")

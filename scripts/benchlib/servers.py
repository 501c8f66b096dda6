"""Starts the servers that are measured: hubcache and other caches, each with a TLS listener on loopback."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from .fleet import hubcache_fleet, hubcache_fleet_limited, hubcache_limited, hubcache_node
from .hubcache_server import REPOSITORY, run_hubcache
from .nginx import nginx, tls
from .processes import BenchError, free_port, listening, running
from .server import Server, Setup, plain_server

MANY_BLOBS = 100_000


def hubcache(setup: Setup) -> AbstractContextManager[Server]:
    """This checkout in mitmdump, with one process."""
    return run_hubcache("hubcache", REPOSITORY, setup)


def hubcache_mitmweb(setup: Setup) -> AbstractContextManager[Server]:
    """This checkout in mitmweb, where every request passes through mitmproxy's flows."""
    return run_hubcache("hubcache-mitmweb", REPOSITORY, setup, web=True)


def hubcache_workers(setup: Setup) -> AbstractContextManager[Server]:
    """This checkout in mitmdump, with as many worker processes as nginx has."""
    return run_hubcache("hubcache-workers", REPOSITORY, setup, workers=setup.workers)


def hubcache_mirror(setup: Setup) -> AbstractContextManager[Server]:
    """The mirror of this checkout in mitmdump, without TLS, with one process."""
    return run_hubcache("hubcache-mirror", REPOSITORY, setup, mirror=True)


def hubcache_mirror_workers(setup: Setup) -> AbstractContextManager[Server]:
    """The same with as many worker processes as nginx has."""
    return run_hubcache("hubcache-mirror-workers", REPOSITORY, setup, workers=setup.workers, mirror=True)


def hubcache_many_blobs(setup: Setup) -> AbstractContextManager[Server]:
    """This checkout in mitmdump, with a store of `MANY_BLOBS` blobs."""
    store = setup.directory / "hubcache-many-blobs" / "store"
    store.mkdir(parents=True)
    command = [str(setup.python), str(Path(__file__).with_name("fill_store.py")), str(store), str(MANY_BLOBS)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "addon")}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=600, check=False)
    if done.returncode != 0:
        raise BenchError(f"the store could not be filled: {done.stderr.decode(errors='replace')[-300:]}")
    return run_hubcache("hubcache-many-blobs", REPOSITORY, setup)


def other(setup: Setup) -> AbstractContextManager[Server]:
    """The other checkout in mitmdump, with one process."""
    return run_hubcache("other", _other_checkout(setup), setup)


def other_mirror(setup: Setup) -> AbstractContextManager[Server]:
    """The mirror of the other checkout in mitmdump, with one process."""
    return run_hubcache("other-mirror", _other_checkout(setup), setup, mirror=True)


def other_mitmweb(setup: Setup) -> AbstractContextManager[Server]:
    """The other checkout in mitmweb."""
    return run_hubcache("other-mitmweb", _other_checkout(setup), setup, web=True)


def _other_checkout(setup: Setup) -> Path:
    if setup.other is None:
        raise BenchError("this server needs --against")
    return setup.other


@contextmanager
def direct(setup: Setup) -> Iterator[Server]:
    """No cache: clients request the upstream registry."""
    address = setup.upstream.url.removeprefix("https://")
    yield Server("direct", setup.upstream.pid, setup.upstream.url, address, setup.certificates.directory)


@contextmanager
def static_nginx(setup: Setup) -> Iterator[Server]:
    """nginx with the files of the upstream registry: no cache can do less work."""
    port = free_port()
    http = f"access_log off; server {{ {tls(setup.certificates, port)} root {setup.upstream.images.root}; }}"
    with nginx(setup.directory / "nginx", setup.workers, http, port) as pid:
        yield _without_proxy("nginx", pid, port, setup)


@contextmanager
def plain_nginx(setup: Setup) -> Iterator[Server]:
    """nginx with the files of the upstream registry, without TLS: the kernel sends them (`sendfile`)."""
    port = free_port()
    http = (
        f"access_log off; sendfile on; tcp_nopush on; "
        f"server {{ listen 127.0.0.1:{port} reuseport; root {setup.upstream.images.root}; }}"
    )
    with nginx(setup.directory / "nginx-plain", setup.workers, http, port) as pid:
        yield plain_server("nginx-plain", pid, port, setup.certificates.directory)


_PROXY_CACHE = """
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
    """nginx `proxy_cache` with the settings of rpardini/docker-registry-proxy: one fetch at a time, redirects followed.

    Clients reach it without CONNECT, which Debian's nginx does not support, so it does less work than hubcache. Unlike
    in that project, a blob has the same cache key before and after the redirect; with two keys, every hit would request
    the redirect from the registry again.
    """
    port = free_port()
    directory = setup.directory / "nginx-cache"
    http = _PROXY_CACHE.format(
        cache=directory / "cache", listener=tls(setup.certificates, port), upstream=setup.upstream.url
    )
    with nginx(directory, setup.workers, http, port) as pid:
        yield _without_proxy("nginx-cache", pid, port, setup, "Authorization: Bearer bench")


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
        yield _without_proxy("docker-registry", pid, port, setup)


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
    """drayage, which issues a certificate for the name that a client requests, as hubcache does.

    It trusts only its built-in authorities, so it reaches the upstream registry without TLS.
    """
    with _drayage("drayage", setup) as (pid, _, port, directory):
        trust = directory / "trust"
        trust.mkdir()
        (trust / "ca.pem").write_bytes((directory / "ca" / "ca.crt").read_bytes())
        yield Server("drayage", pid, f"https://localhost:{port}", f"localhost:{port}", trust)


@contextmanager
def plain_drayage(setup: Setup) -> Iterator[Server]:
    """drayage without TLS."""
    with _drayage("drayage-plain", setup) as (pid, port, _, directory):
        yield plain_server("drayage-plain", pid, port, directory)


@contextmanager
def _drayage(name: str, setup: Setup) -> Iterator[tuple[int, int, int, Path]]:
    """Run drayage, and yield its process, its ports without and with TLS, and its directory."""
    program = setup.tools / "bin" / "drayage"
    if not program.exists():
        raise BenchError(f"{program} does not exist: `pip install drayage` failed")
    plain, port = free_port(), free_port()
    directory = setup.directory / name
    directory.mkdir(parents=True)
    (directory / "store").mkdir(parents=True)
    done = subprocess.run([program, "gen-ca", "--dir", directory / "ca"], capture_output=True, timeout=30, check=False)
    if done.returncode != 0:
        raise BenchError(
            f"drayage could not create its certificate authority: {done.stderr.decode(errors='replace').strip()}"
        )
    config = directory / "config.toml"
    config.write_text(_DRAYAGE.format(plain=plain, port=port, directory=directory, upstream=setup.upstream.plain_url))
    with running([program, "serve", "--config", config], directory, listening(plain, port)) as pid:
        yield pid, plain, port, directory


def _without_proxy(name: str, pid: int, port: int, setup: Setup, *headers: str) -> Server:
    address = f"localhost:{port}"
    return Server(name, pid, f"https://{address}", address, setup.certificates.directory, headers=headers)


START: dict[str, Callable[[Setup], AbstractContextManager[Server]]] = {
    "hubcache": hubcache,
    "hubcache-mitmweb": hubcache_mitmweb,
    "hubcache-workers": hubcache_workers,
    "hubcache-mirror": hubcache_mirror,
    "hubcache-mirror-workers": hubcache_mirror_workers,
    "hubcache-many-blobs": hubcache_many_blobs,
    "hubcache-node": hubcache_node,
    "hubcache-fleet": hubcache_fleet,
    "hubcache-limited": hubcache_limited,
    "hubcache-fleet-limited": hubcache_fleet_limited,
    "other": other,
    "other-mitmweb": other_mitmweb,
    "other-mirror": other_mirror,
    "direct": direct,
    "nginx": static_nginx,
    "nginx-cache": caching_nginx,
    "docker-registry": distribution,
    "drayage": drayage,
    "nginx-plain": plain_nginx,
    "drayage-plain": plain_drayage,
}
"""The function that starts each server. `direct` is the upstream registry itself, `nginx` serves its files, and all
others fetch from it."""

PLAIN = ("hubcache-mirror", "hubcache-mirror-workers", "nginx-plain", "drayage-plain")
"""Servers without TLS, as most mirrors are used."""

CACHES = ("hubcache", "hubcache-workers", "nginx-cache", "docker-registry", "drayage")

COMPARED = {"hubcache": "other", "hubcache-mitmweb": "other-mitmweb", "hubcache-mirror": "other-mirror"}
"""Servers of this checkout, and the same of the other checkout."""

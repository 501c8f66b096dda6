"""The upstream registry, in place of Docker Hub: nginx with static files, so that it is faster than any cache.

It requires a token (any token), redirects blob requests to a CDN on another port, and logs every request. Blobs of
repositories whose names start with a name in `LINKS` are served over a link of limited speed.
"""

import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from sys import executable

from . import accesslog
from .accesslog import Traffic
from .certificates import Certificates
from .images import MANIFEST_TYPE, Images
from .nginx import nginx, tls
from .processes import BenchError, free_port, listening, running

UPLINK_RATE = 50_000_000
LINKS = {"uplink": UPLINK_RATE, "gigabit": 125_000_000, "office": 12_500_000}
"""Speed of each limited link in bytes per second."""

_QUIET_SECONDS = 60

_TOKEN = '{"token":"bench","access_token":"bench","expires_in":300,"issued_at":"2020-01-01T00:00:00Z"}'

_HTTP = """
    log_format requests escape=json '{format}';
    access_log {log} requests;
    root {root};
    # A tag contains its digest, so that a new image needs no new configuration.
    map $uri $content_digest {{
        ~/manifests/(?<digest>sha256:[0-9a-f]+)$ $digest;
        ~/manifests/t-(?<hex>[0-9a-f]+)$ sha256:$hex;
    }}
    map $scheme:$uri $cdn_port {{
        {links}
        ~^https: {cdn_tls};
        default {cdn_plain};
    }}
    server {{
        server_name registry;
        {registry_tls}
        listen 127.0.0.1:{registry_plain};
        error_page 401 = @challenge;
        location = /status {{ access_log off; stub_status; }}
        location = /token {{ default_type application/json; return 200 '{token}'; }}
        location = /v2/ {{
            if ($http_authorization = "") {{ return 401; }}
            default_type application/json;
            return 200 '{{}}';
        }}
        location ~ /manifests/ {{
            if ($http_authorization = "") {{ return 401; }}
            default_type {manifest_type};
            add_header Docker-Content-Digest $content_digest;
            add_header Docker-Distribution-Api-Version registry/2.0;
        }}
        location ~ /blobs/ {{
            if ($http_authorization = "") {{ return 401; }}
            return 307 $scheme://127.0.0.1:$cdn_port$uri;
        }}
        location @challenge {{
            default_type application/json;
            add_header Docker-Distribution-Api-Version registry/2.0 always;
            add_header WWW-Authenticate 'Bearer realm="$scheme://$http_host/token",service="registry.docker.io"' always;
            return 401 '{{"errors":[{{"code":"UNAUTHORIZED","message":"authentication required"}}]}}';
        }}
    }}
    server {{
        server_name {cdn};
        {cdn_tls_listener}
        listen 127.0.0.1:{cdn_plain};
        location /v2/ {{ }}
    }}
"""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The running upstream registry. `plain_url` is without TLS, for caches that cannot be configured to trust the
    authority of the benchmark."""

    images: Images
    url: str
    plain_url: str
    log: Path
    pid: int

    def log_size(self) -> int:
        """Current size of the access log in bytes, to pass to `traffic_since`."""
        return self.log.stat().st_size

    def traffic_since(self, log_size: int) -> Traffic:
        """The requests since the access log had this size.

        Waits until no request is in progress, because nginx logs a request at its end, and some caches still fetch
        when their client is done. Raises `BenchError` if that takes more than a minute.
        """
        deadline = time.monotonic() + _QUIET_SECONDS
        while self._busy():
            if time.monotonic() > deadline:
                raise BenchError(f"upstream requests continue for more than {_QUIET_SECONDS} seconds")
            time.sleep(0.1)
        with self.log.open("rb") as log:
            log.seek(log_size)
            return Traffic.parse(log.read().decode().splitlines())

    def _busy(self) -> bool:
        with urllib.request.urlopen(f"{self.plain_url}/status", timeout=5) as answer:
            writing = re.search(r"Writing: (\d+)", answer.read().decode())
        return writing is None or int(writing[1]) > 1  # one of them is this request


@contextmanager
def upstream(directory: Path, certificates: Certificates) -> Iterator[Upstream]:
    """Run the upstream registry and its limited links."""
    ports = {name: free_port() for name in ("registry", "registry_plain", "cdn_tls", "cdn_plain")}
    link_ports = {(link, kind): free_port() for link in LINKS for kind in ("tls", "plain")}
    schemes = {"tls": "https", "plain": "http"}
    root = directory / "files"
    root.mkdir(parents=True)
    log = directory / "requests.log"
    http = _HTTP.format(
        format=accesslog.FORMAT,
        log=log,
        root=root,
        token=_TOKEN,
        manifest_type=MANIFEST_TYPE,
        cdn=accesslog.CDN,
        links="\n".join(f"~^{schemes[kind]}:/v2/{link}/ {port};" for (link, kind), port in link_ports.items()),
        registry_tls=tls(certificates, ports["registry"]),
        cdn_tls_listener=tls(certificates, ports["cdn_tls"]),
        **{name: port for name, port in ports.items() if name != "registry"},
    )
    with ExitStack() as stack:
        registry_ports = (ports["registry"], ports["registry_plain"], ports["cdn_tls"], ports["cdn_plain"])
        pid = stack.enter_context(nginx(directory / "nginx", 2, http, *registry_ports))
        for link, rate in LINKS.items():
            pairs = [f"{link_ports[link, kind]}:{ports['cdn_' + kind]}" for kind in schemes]
            relay = [executable, Path(__file__).with_name("slow_link.py"), str(rate), *pairs]
            (directory / link).mkdir()
            ready = listening(*(link_ports[link, kind] for kind in schemes))
            stack.enter_context(running(relay, directory / link, ready))
        url = f"https://localhost:{ports['registry']}"
        yield Upstream(Images(root), url, f"http://localhost:{ports['registry_plain']}", log, pid)

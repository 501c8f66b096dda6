"""Running nginx from a directory of its own, without anything of the system's configuration."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .certificates import Certificates
from .processes import listening, running

_MAIN = """\
daemon off;
worker_processes {workers};
pid nginx.pid;
error_log error.log warn;
events {{ worker_connections 4096; }}
http {{
    default_type application/octet-stream;
    keepalive_requests 1000000;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
{http}
}}
"""


@contextmanager
def nginx(directory: Path, workers: int, http: str, *ports: int) -> Iterator[int]:
    """Run nginx with `http` as the inside of its http block; gives the master's process id.

    Workers keep the rights of whoever runs the benchmark: the files below are for nobody else.
    """
    directory.mkdir(parents=True)
    user = "user root;\n" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(user + _MAIN.format(workers=workers, http=http))
    command = [shutil.which("nginx") or "/usr/sbin/nginx", "-p", directory, "-c", directory / "nginx.conf"]
    with running(command, directory, listening(*ports)) as pid:
        yield pid


def tls(certificates: Certificates, port: int) -> str:
    """The directives of a TLS listener. Clients speak TLS 1.3, nginx as a client only 1.2.

    `reuseport` spreads connections over the workers evenly."""
    return (
        f"listen 127.0.0.1:{port} ssl reuseport; ssl_protocols TLSv1.2 TLSv1.3; "
        f"ssl_certificate {certificates.certificate}; ssl_certificate_key {certificates.key};"
    )

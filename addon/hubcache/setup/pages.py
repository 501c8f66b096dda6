"""The set-up page, the attach script and the CA certificate, as a running cache serves them."""

import logging
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

HERE = Path(__file__).parent
ATTACH_SCRIPT = HERE / "attach.sh"
SOURCE = HERE / "README.md"
"""The page is written once, for readers of the repository and for those of a running cache."""

_FOR_REPOSITORY = re.compile(r"<!-- repository -->.*?<!-- /repository -->\n", re.DOTALL)
"""Parts of the page for readers of the repository, which the page of a running cache omits."""
_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")
# It logs thousands of lines for one page. mitmproxy schedules a callback of the event loop for each line, at any level:
# all clients waited for a second, and a SIGTERM in that second was lost, because the pipe that wakes the loop was full.
logging.getLogger("markdown_it").setLevel(logging.WARNING)

_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ max-width: 52rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.55 system-ui, sans-serif }}
h1, h2 {{ line-height: 1.2; margin-top: 2.2rem }}
pre {{ padding: .8rem 1rem; overflow-x: auto; border-radius: .4rem; background: #8882; user-select: all }}
code {{ font: .9em ui-monospace, monospace; overflow-wrap: anywhere }}
pre code {{ overflow-wrap: normal }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
th, td {{ padding: .35rem .7rem; border: 1px solid #8886; text-align: left; vertical-align: top }}
</style>
{body}
</html>
"""


class Addresses(NamedTuple):
    """Where clients reach this cache: `host` as they name it (an IPv6 address in brackets), and the two ports."""

    host: str
    mirror_port: int
    proxy_port: int

    @classmethod
    def of(cls, authority: str, mirror_port: int, proxy_port: int) -> "Addresses":
        """Return the addresses for a client that named the cache so in `Host`; a malformed name becomes a placeholder.

        The name is written into a script that runs as root, so it may contain only characters that no shell interprets.
        """
        found = _HOST.fullmatch(authority)
        return cls(found["name"] if found else "CACHE", mirror_port, proxy_port)

    @property
    def mirror(self) -> str:
        """`host:port` of the mirror."""
        return f"{self.host}:{self.mirror_port}"

    @property
    def proxy(self) -> str:
        """`host:port` of the proxy."""
        return f"{self.host}:{self.proxy_port}"


def filled_in(text: str, addresses: Addresses) -> str:
    """Return the page's source with this cache's own addresses in place of `CACHE`."""
    text = text.replace("CACHE:5000", addresses.mirror).replace("CACHE:8080", addresses.proxy)
    return re.sub(r"\bCACHE\b(?!_)", addresses.host, text)


@cache
def _page_without_addresses() -> str:
    """Return the set-up page as HTML with placeholders: rendering takes milliseconds, and any client may request it."""
    body = MarkdownIt("commonmark").enable("table").render(_FOR_REPOSITORY.sub("", SOURCE.read_text()))
    return _TEMPLATE.format(title="hubcache at CACHE:5000", body=body)


def setup_page(addresses: Addresses) -> bytes:
    """Return the set-up page as HTML."""
    return filled_in(_page_without_addresses(), addresses).encode()


def attach_script(addresses: Addresses) -> bytes:
    """Return the attach script for this cache."""
    script = ATTACH_SCRIPT.read_text()
    return script.replace("@MIRROR@", addresses.mirror).replace("@PROXY@", addresses.proxy).encode()

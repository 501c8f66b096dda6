"""Checks of the running program on this machine: its socket, versions, options file, limits and own report."""

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ...oci.errors import ConfigError
from ...operate.version import version
from ..text import age, duration
from .finding import Finding, ok, problem, skipped, warning
from .target import Target

FEW_DESCRIPTORS = 4096
"""Each transfer takes four."""


def check_versions(target: Target) -> Iterator[Finding]:
    """Compare the versions of cache and command, and report an untested mitmproxy."""
    report = target.report
    if report is None:
        yield skipped("versions", f"this command is version {version()}; the cache does not run")
        return
    process = report["process"]
    if report["version"] != version():
        yield warning(
            "versions",
            f"the cache runs version {report['version']}, this command is version {version()}",
            "restart the cache after an upgrade, or run the command of the same installation",
        )
    elif process["untested"]:
        yield warning(
            "versions",
            f"{process['untested']}: all clients are served by mitmproxy itself, which is slower",
            "install a mitmproxy that this version was tested with; scripts/serve does so",
        )
    else:
        yield ok(
            "versions", f"hubcache {report['version']}, mitmproxy {process['mitmproxy']}, Python {process['python']}"
        )


def check_options_file(target: Target) -> Iterator[Finding]:
    """Parse the options file as the cache does at its next start or SIGHUP."""
    from ...operate import config_file  # imports mitmproxy, which takes a second
    from ...operate.options import OPTIONS

    path = _options_file(target)
    try:
        text = path.read_text()
        values = config_file.parse(text)
        for option in OPTIONS:
            if option.name in values:
                option.parse(values[option.name])
    except FileNotFoundError:
        yield ok("options file", f"{path} does not exist; it need not")
        return
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        yield problem("options file", f"{path}: {error}", "correct it: the cache cannot start or reload with it")
        return
    changed = path.stat().st_mtime
    if target.report is not None and changed > target.report["started"]:
        yield warning(
            "options file",
            f"{path} was changed {age(changed)}, after the start of the cache",
            "unless you did so already, send SIGHUP to the cache, or restart it",
        )
    else:
        yield ok("options file", f"{path} is valid; it sets {len(values)} options")


def check_report(target: Target) -> Iterator[Finding]:
    """Repeat what the cache itself reports: upstreams that do not answer, and its sentences about other problems."""
    report = target.report
    if report is None:
        return
    down = [upstream for upstream in report["upstreams"] if not upstream["is_up"]]
    for upstream in down:
        yield problem(
            "upstreams",
            f"{upstream['registry']} is down: {upstream['reason']}",
            "stored images are still served; check DNS, firewall and outbound proxy of the cache's machine",
        )
    if report["upstreams"] and not down:
        yield ok("upstreams", f"{', '.join(upstream['registry'] for upstream in report['upstreams'])}: no failures")
    found = [upstream["reason"] for upstream in down] + [report["store"]["problem"]]
    if (fleet := report.get("fleet")) is not None:
        found.append(fleet["problem"])
    for text in report["problems"]:
        if not any(reason and reason in text for reason in found):  # it is a finding already
            yield warning("report", str(text), "see hubcache status")


def check_outbound_proxy(target: Target) -> Iterator[Finding]:
    """Compare the outbound proxy of the cache with the one of this shell."""
    if target.report is None:
        return
    used = target.report["process"]["outbound_proxy"]
    here = os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY")
    if used:
        yield ok("outbound proxy", f"the cache reaches registries through {used}")
    elif here:
        yield warning(
            "outbound proxy",
            "HTTPS_PROXY is set here, but the cache was started without it and connects directly",
            "if this network needs the proxy, set HTTPS_PROXY for the cache's service, too",
        )
    else:
        yield ok("outbound proxy", "none; the cache connects to registries directly")


def check_descriptors(target: Target) -> Iterator[Finding]:
    """Check the limit of open files of the cache's process."""
    if target.report is None:
        return
    counts: dict[str, Any] = target.report["process"]["descriptors"]
    limit, used = counts["limit"], counts["open"]
    text = f"{'an unknown number' if used is None else used} of {limit} file descriptors are open"
    advice = "raise the limit: LimitNOFILE=65536 in the systemd unit, or ulimit -n 65536 before the start"
    if used is not None and used > limit * 0.9:
        yield problem("descriptors", text, advice)
    elif limit < FEW_DESCRIPTORS:
        yield warning("descriptors", f"{text}; a transfer takes four", advice)
    else:
        yield ok("descriptors", text)


def running_text(report: dict[str, Any], directory: Path) -> str:
    """Return a line about a running cache."""
    since = datetime.fromtimestamp(report["started"]).strftime("%Y-%m-%d %H:%M")
    return f"process {report['process']['pid']} runs since {since} ({duration(report['uptime'])}), store {directory}"


def _options_file(target: Target) -> Path:
    named = target.report and target.report["process"]["config_file"]
    return Path(named) if named else Path("~/.mitmproxy/hubcache.yaml").expanduser()

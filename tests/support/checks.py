"""Targets for the checks of `hubcache doctor`, and the single finding of a check."""

from collections.abc import Iterable
from typing import Any

from hubcache.cli.checks.finding import Finding, State
from hubcache.cli.checks.target import Target
from hubcache.oci.image_name import ImageName


def target(report: dict[str, Any] | None = None, **values: Any) -> Target:
    """A cache of which only the report, and what a test names, is known."""
    return Target(ImageName.parse("hello-world"), report=report, **values)


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    assert (finding.state in (State.OK, State.SKIPPED)) is (finding.advice == "")
    return finding

"""Prints the summary of scripts/test, from the stages that it ran and the JUnit reports that pytest wrote."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

SLOWEST = 10


@dataclass(frozen=True)
class Case:
    """A test that ran; `problem` is the first line of its failure, or empty."""

    name: str
    seconds: float
    problem: str = ""
    is_skipped: bool = False


@dataclass(frozen=True)
class Stage:
    """A command that ran, with its exit status, its time in seconds, and the tests that its report names."""

    name: str
    status: int
    seconds: float
    cases: Sequence[Case] = field(default=())

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many tests passed, failed and were skipped."""
        failed = sum(bool(case.problem) for case in self.cases)
        skipped = sum(case.is_skipped for case in self.cases)
        return len(self.cases) - failed - skipped, failed, skipped


def read_report(path: Path) -> list[Case]:
    """Return the tests of a JUnit report; none when pytest ended before it wrote one."""
    if not path.exists():
        return []
    return [_case(element) for element in ElementTree.parse(path).iter("testcase")]  # noqa: S314 - pytest wrote it


def read_stages(directory: Path) -> list[Stage]:
    """Return the stages of `directory/stages`, one a line: number, exit status, seconds and name, between tabs."""
    stages = []
    for line in (directory / "stages").read_text().splitlines():
        number, status, seconds, name = line.split("\t")
        stages.append(Stage(name, int(status), float(seconds), read_report(directory / f"{number}.xml")))
    return stages


def summary(stages: Sequence[Stage]) -> Iterable[str]:
    """Return the lines of the summary: the slowest tests, all stages, and everything that failed."""
    cases = [case for stage in stages for case in stage.cases]
    slowest = sorted(cases, key=lambda case: -case.seconds)[:SLOWEST]
    if slowest:
        yield "slowest tests:"
        yield from (f"  {case.seconds:6.1f} s  {case.name}" for case in slowest)
    width = max(len(stage.name) for stage in stages)
    yield f"{'stage':{width}}  result  passed  failed  skipped      time"
    for stage in stages:
        result = "failed" if stage.status else "ok"
        counts = stage.counts if stage.cases else ("", "", "")
        numbers = "  ".join(f"{count:>{size}}" for count, size in zip(counts, (6, 6, 7), strict=True))
        yield f"{stage.name:{width}}  {result:6}  {numbers}  {stage.seconds:6.0f} s"
    failed = [stage for stage in stages if stage.status]
    if failed:
        yield "failed:"
    for stage in failed:
        problems = [case for case in stage.cases if case.problem]
        yield f"  {stage.name}" if problems else f"  {stage.name}: exit status {stage.status}, see above"
        yield from (f"    {case.name}: {case.problem}" for case in problems)


def _case(element: ElementTree.Element) -> Case:
    failures = [*element.iter("failure"), *element.iter("error")]
    problem = (failures[0].get("message") or failures[0].tag).splitlines()[0] if failures else ""
    return Case(_name(element), float(element.get("time", 0)), problem, element.find("skipped") is not None)


def _name(element: ElementTree.Element) -> str:
    """Return the test's name as pytest takes it; a report joins module and class by dots."""
    path, dotted = element.get("file", ""), element.get("classname", "")
    classes = dotted.removeprefix(path.removesuffix(".py").replace("/", ".")).removeprefix(".")
    return "::".join(filter(None, (path, *classes.split("."), element.get("name", ""))))


if __name__ == "__main__":
    print("\n".join(summary(read_stages(Path(sys.argv[1])))))

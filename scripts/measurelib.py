"""Measures Python source code and prints a Markdown table: lines of files and functions, complexity, typing, and tests.

The complexity of a function is 1 plus the number of its decisions, including those of nested functions: if, for, while,
except, case, assert, conditional expression, comprehension, and each `and` or `or`. A function is fully typed if its
result and all its parameters have annotations."""

import argparse
import ast
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Self

from benchlib.stats import percentile

ROOT = Path(__file__).resolve().parents[1]
_DECISIONS = (
    *(ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.comprehension),
    *(ast.ExceptHandler, ast.match_case, ast.Assert),
)
type Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(slots=True)
class Measurement:
    """The figures of one package. Each list has a value for each file or function."""

    name: str
    file_lines: list[int] = field(default_factory=list)
    function_lines: list[int] = field(default_factory=list)
    complexities: list[int] = field(default_factory=list)
    fully_typed: list[bool] = field(default_factory=list)
    test_files: int = 0
    test_lines: int = 0

    @classmethod
    def of(cls, name: str, code: Path, tests: Path | None = None) -> Self:
        """Measure the Python files below `code`, except those below `tests`."""
        result = cls(name)
        for path in sorted(code.rglob("*.py")):
            if tests is None or not path.is_relative_to(tests):
                result._add(path.read_text(encoding="utf-8"))
        for path in tests.rglob("*.py") if tests else ():
            result.test_files += path.name.startswith("test_")
            result.test_lines += _lines(path.read_text(encoding="utf-8"))
        return result

    def _add(self, source: str) -> None:
        self.file_lines.append(_lines(source))
        for function, is_method in _functions(ast.parse(source)):
            self.function_lines.append((function.end_lineno or 0) - function.lineno + 1)
            self.complexities.append(complexity(function))
            self.fully_typed.append(fully_typed(function, is_method))


def _lines(source: str) -> int:
    return len(source.splitlines())


def _functions(tree: ast.AST) -> Iterator[tuple[Function, bool]]:
    """All functions, and whether each is a method with a parameter `self` or `cls`."""
    for parent in ast.walk(tree):
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in node.decorator_list)
                yield node, isinstance(parent, ast.ClassDef) and not static


def complexity(function: Function) -> int:
    """The number of decisions in a function, plus 1."""
    nodes = list(ast.walk(function))
    operators = sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))
    return 1 + operators + sum(isinstance(node, _DECISIONS) for node in nodes)


def fully_typed(function: Function, is_method: bool) -> bool:
    """Whether the result and all parameters have annotations, except the first parameter of a method."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args][is_method:] + arguments.kwonlyargs
    variable = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return function.returns is not None and all(argument.annotation for argument in named + variable)


def _three(values: Sequence[int], percent: float) -> str:
    return f"{median(values):g} / {percentile(values, percent)} / {max(values)}" if values else "-"


ROWS: dict[str, Callable[[Measurement], str]] = {
    "files": lambda one: f"{len(one.file_lines):,}",
    "lines": lambda one: f"{sum(one.file_lines):,}",
    "lines per file, median / p90 / max": lambda one: _three(one.file_lines, 90),
    "lines per function, median / p99 / max": lambda one: _three(one.function_lines, 99),
    "highest complexity": lambda one: str(max(one.complexities, default="-")),
    "functions fully typed": lambda one: (
        f"{int(100 * sum(one.fully_typed) / len(one.fully_typed))} %" if one.fully_typed else "-"
    ),
    "test files": lambda one: f"{one.test_files:,}" if one.test_files else "-",
    "lines of tests": lambda one: f"{one.test_lines:,}" if one.test_files else "-",
}


def markdown(measurements: Sequence[Measurement]) -> str:
    """A table with a column for each package."""
    lines = ["| | " + " | ".join(one.name for one in measurements) + " |", "|---" * (len(measurements) + 1) + "|"]
    lines += [f"| {label} | {' | '.join(map(cell, measurements))} |" for label, cell in ROWS.items()]
    return "\n".join(lines)


def _measurement(text: str) -> Measurement:
    """Measure `CODE` or `CODE:TESTS`, as given on the command line."""
    code, _, tests = text.partition(":")
    installed = Path(sysconfig.get_path("purelib"), *code.split("."))
    path = Path(code) if Path(code).is_dir() else installed
    for directory in (path, *([Path(tests)] if tests else [])):
        if not directory.is_dir():
            raise argparse.ArgumentTypeError(f"neither a directory nor an installed package: {directory}")
    return Measurement.of(code, path.resolve(), Path(tests).resolve() if tests else None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure hubcache and the packages that are given."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "others",
        nargs="*",
        type=_measurement,
        metavar="CODE[:TESTS]",
        help="also measure this directory or installed package (for example mitmproxy.addons), and its tests",
    )
    others = parser.parse_args(arguments).others
    print(markdown([Measurement.of("hubcache", ROOT / "addon" / "hubcache", ROOT / "tests"), *others]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

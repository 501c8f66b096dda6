"""scripts/measure: the figures of source code, and their table."""

import ast
from pathlib import Path

import pytest
from measurelib import Measurement, complexity, fully_typed, main, markdown


def function(source: str) -> ast.FunctionDef:
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    return node


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 1", 1),
        ("return 1 if x else 2", 2),
        ("return x and x or x", 3),
        ("return [y for y in x if y]", 2),
        ("for y in x:\n  if y: pass\n  elif x: pass", 4),
        ("try: pass\n except A: pass\n except B: pass", 3),
        ("match x:\n  case 1: pass\n  case _: pass", 3),
        ("def g():\n  assert x", 2),
    ],
)
def test_complexity_is_the_number_of_decisions_plus_one(body: str, expected: int) -> None:
    assert complexity(function(f"def f(x):\n {body}")) == expected


@pytest.mark.parametrize(
    ("source", "is_method", "expected"),
    [
        ("def f() -> int: ...", False, True),
        ("def f(): ...", False, False),
        ("def f(a: int, *b: int, c: int, **d: int) -> int: ...", False, True),
        ("def f(a, b: int) -> int: ...", False, False),
        ("def f(self, b: int) -> int: ...", True, True),
        ("def f(a: int, *b) -> int: ...", False, False),
        ("def f(a: int, *, b) -> int: ...", False, False),
    ],
)
def test_a_fully_typed_function_has_annotations_for_its_result_and_all_parameters(
    source: str, is_method: bool, expected: bool
) -> None:
    assert fully_typed(function(source), is_method) == expected


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "a.py").write_text(
        "class A:\n    def f(self) -> int:\n        return 1\n\n    @staticmethod\n    def g(x): ...\n"
    )
    (tmp_path / "b.py").write_text("x = 1\ny = 2\n")
    (tmp_path / "tests" / "test_a.py").write_text("a\nb\nc\n")
    (tmp_path / "tests" / "support.py").write_text("d\n")
    return tmp_path


def test_a_package_is_measured_without_its_tests(package: Path) -> None:
    result = Measurement.of("p", package, package / "tests")
    assert result.file_lines == [6, 2]
    assert result.function_lines == [2, 1]
    assert result.fully_typed == [True, False]
    assert (result.test_files, result.test_lines) == (1, 4)


def test_the_table_has_a_column_for_each_package(package: Path) -> None:
    table = markdown([Measurement.of("p", package / "tests"), Measurement.of("q", package, package / "tests")])
    assert table.splitlines()[0] == "| | p | q |"
    assert "| lines per file, median / p90 / max | 2 / 3 / 3 | 4 / 6 / 6 |" in table
    assert "| lines per function, median / p99 / max | - | 1.5 / 2 / 2 |" in table
    assert "| functions fully typed | - | 50 % |" in table
    assert "| test files | - | 1 |" in table


def test_measures_hubcache_and_an_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["h11"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| | hubcache | h11 |"
    assert "| functions fully typed | 100 % | 100 % |" in lines


def test_a_package_that_does_not_exist_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["no.such.package"])
    assert "neither a directory nor an installed package" in capsys.readouterr().err

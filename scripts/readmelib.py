"""Regenerates the generated parts of the README pages: each stands between `<!-- NAME -->` and `<!-- /NAME -->`."""

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / directory) for directory in ("addon", "tests", "scripts")]


def options() -> str:
    """Return the table of options."""
    from hubcache.operate.options import OPTIONS

    rows = ["| option | default | meaning |", "|---|---|---|"]
    for option in OPTIONS:
        default = ", ".join(option.default) if isinstance(option.default, list) else str(option.default).lower()
        default = option.default if isinstance(option.default, str) else default
        rows.append(f"| `{option.name}` | {f'`{default}`' if default else 'empty'} | {option.help} |")
    return "\n".join(rows)


def commands() -> str:
    """Return a section for each command of the command line, with its arguments and options."""
    import typer.main
    from hubcache.cli.main import app

    group: Any = typer.main.get_command(app)
    shared: dict[str, str] = {}
    sections = []
    for name, command in group.commands.items():
        usage, rows = ["hubcache", name], ["| argument or option | meaning |", "|---|---|"]
        for parameter in command.params:
            written = _parameter(parameter)
            if parameter.param_type_name == "argument":
                usage.append(written)
            if parameter.name in ("directory", "is_json") and name != "serve":
                shared[written] = parameter.help
            else:
                rows.append(f"| `{written.replace('|', '\\|')}` | {parameter.help} |")
        table = ["", *rows] if len(rows) > 2 else []
        text = (command.help or "").strip().splitlines()
        sections.append("\n".join([f"### {name}", "", f"`{' '.join(usage)}`", "", *text, *table]))
    rows = ["| option | meaning |", "|---|---|", *(f"| `{written}` | {help} |" for written, help in shared.items())]
    return "\n\n".join(["\n".join(["Commands that ask a running cache have these options:", "", *rows]), *sections])


def _parameter(parameter: Any) -> str:
    """Return an argument or option as users write it; one with a value must have a `metavar`."""
    if parameter.param_type_name == "argument":
        name = parameter.metavar + ("..." if parameter.nargs == -1 else "")
        return name if parameter.required else f"[{name}]"
    names = ", ".join(parameter.opts)
    return names if parameter.is_flag else f"{names} {parameter.metavar}"


def modules() -> str:
    """Return a table of all modules with the first sentence of their docstrings."""
    package = ROOT / "addon" / "hubcache"
    rows = ["| module | contents |", "|---|---|"]
    for path in sorted(package.rglob("*.py"), key=lambda path: (len(path.parts), path)):
        if path.name == "__init__.py":
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        sentence = re.split(r"(?<=[.:;])\s", docstring.replace("\n", " "))[0].rstrip(".:;")
        rows.append(f"| `{path.relative_to(package).with_suffix('')}` | {sentence} |")
    return "\n".join(rows)


def faults() -> str:
    """Return the table of faults and their effects; `tests/engine/test_faults.py` runs the same table."""
    from support.fault_table import markdown

    return markdown()


def soak() -> str:
    """Return the results of the last soak, which `scripts/soak --json .assets/soak.json` has written."""
    from soaklib.rows import Row, table

    return table([Row(**row) for row in json.loads((ROOT / ".assets" / "soak.json").read_text())])


def fleet() -> str:
    """Return the simulated fleets that `scripts/simulate --fleet ... --json .assets/fleet.json` has written."""
    from simlib.fleet_report import FleetResults, report

    return report(FleetResults.load(ROOT / ".assets" / "fleet.json"))


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "options": ("addon/hubcache/operate/README.md", options),
    "commands": ("addon/hubcache/cli/README.md", commands),
    "modules": ("addon/README.md", modules),
    "faults": ("addon/hubcache/serve/README.md", faults),
    "fleet": ("addon/hubcache/fleet/README.md", fleet),
    "soak": ("scripts/README.md", soak),
}
"""By name: the page that has the part, and what makes it."""


def pages() -> list[Path]:
    """Return all pages written for readers."""
    return sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob(".github/*.md"), *ROOT.glob("[!.]*/**/*.md")])


def regenerated(name: str) -> tuple[Path, str]:
    """Return a part's page and the text that the page should have; raises `ValueError` if the page lacks the marks."""
    page, make = PARTS[name]
    path = ROOT / page
    before, begin, rest = path.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not begin or not end:
        raise ValueError(f"{page} has no place for {name}")
    return path, f"{before}{begin}{make()}\n{end}{after}"


if __name__ == "__main__":
    for part in PARTS:
        changed, text = regenerated(part)
        changed.write_text(text)

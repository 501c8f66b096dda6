"""Regenerates the generated parts of the README pages: each stands between `<!-- NAME -->` and `<!-- /NAME -->`."""

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

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


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "options": ("addon/hubcache/operate/README.md", options),
    "modules": ("addon/README.md", modules),
    "faults": ("addon/hubcache/serve/README.md", faults),
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

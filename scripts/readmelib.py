"""The generated parts of README.md, each between `<!-- NAME -->` and `<!-- /NAME -->`; a test compares them."""

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
sys.path[:0] = [str(ROOT / "addon"), str(ROOT / "tests")]


def options() -> str:
    """The option table of the addon."""
    from hubcache.operate.option_table import OPTIONS

    rows = ["| option | default | what it does |", "|---|---|---|"]
    for option in OPTIONS:
        default = ", ".join(option.default) if isinstance(option.default, list) else str(option.default).lower()
        default = option.default if isinstance(option.default, str) else default
        rows.append(f"| `{option.name}` | {f'`{default}`' if default else 'empty'} | {option.help} |")
    return "\n".join(rows)


def rooms() -> str:
    """Each module with the first sentence of its docstring."""
    package = ROOT / "addon" / "hubcache"
    rows = ["| module | what it is for |", "|---|---|"]
    for path in sorted(package.rglob("*.py"), key=lambda path: (len(path.parts), path)):
        if path.name == "__init__.py":
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        sentence = re.split(r"(?<=[.:;])\s", docstring.replace("\n", " "))[0].rstrip(".:;")
        rows.append(f"| `{path.relative_to(package).with_suffix('')}` | {sentence} |")
    return "\n".join(rows)


def faults() -> str:
    """What clients get when something fails; the tests run the same table."""
    from support.fault_table import markdown

    return markdown()


def soak() -> str:
    """What the last soak found, as `scripts/soak --json .assets/soak.json` wrote it."""
    sys.path.append(str(ROOT / "scripts"))
    from soaklib.rows import Row, table

    return table([Row(**row) for row in json.loads((ROOT / ".assets" / "soak.json").read_text())])


SECTIONS: dict[str, Callable[[], str]] = {"options": options, "faults": faults, "rooms": rooms, "soak": soak}


def generated(text: str) -> str:
    """`text` with all generated parts made anew; raises `ValueError` when one has no place."""
    for name, make in SECTIONS.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"README.md has no place for {name}")
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))

"""The page about the command line agrees with the commands; `scripts/readme` generates the list of their options."""

import re
import shlex
from typing import Any

import pytest
import typer.main
from hubcache.cli import attach, errors
from hubcache.cli.main import app
from support.cli import run
from support.paths import ADDON

PAGE = (ADDON / "hubcache/cli/README.md").read_text()
BLOCKS = "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLES = [line.partition("  #")[0].strip() for line in BLOCKS.splitlines() if line.startswith("hubcache ")]
COMMANDS: dict[str, Any] = dict(vars(typer.main.get_command(app))["commands"])


def test_every_command_has_a_section() -> None:
    assert re.findall(r"^### (\S+)$", PAGE, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_the_section_of_its_command(name: str) -> None:
    section = PAGE.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
    shared = {"--dir", "--json"} if name not in ("serve", "attach") else set()
    for option in {option for parameter in COMMANDS[name].params for option in parameter.opts if option[0] == "-"}:
        assert option in shared or re.search(rf"`[^`\n]*{re.escape(option)}\b", section), option


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_describes_itself_and_its_arguments(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert all(parameter.help for parameter in command.params)
    assert run(name, "--help").exit_code == 0


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_names_commands_and_options_that_exist(example: str) -> None:
    _, name, *arguments = shlex.split(example)
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    if name == "attach":
        known |= {argument.partition(" ")[0] for argument in attach.PASSED_ON}
    if name == "serve":
        known |= {"--set"}
    assert {argument for argument in arguments if argument.startswith("-")} <= known


def test_examples_are_found() -> None:
    assert len(EXAMPLES) > 10


def test_every_argument_of_the_attach_script_is_described() -> None:
    usage = re.findall(r"^  (--[a-z-]+)", attach.SCRIPT.read_text(), re.MULTILINE)
    described = {argument.partition(" ")[0] for argument in attach.PASSED_ON}
    assert set(usage) == described | {"--cache", "--mirror"}


def test_every_exit_code_is_on_the_page() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", PAGE, re.MULTILINE)}
    assert codes == {errors.DONE, errors.FAILURES, errors.USAGE, errors.UNREACHABLE, errors.REFUSED}

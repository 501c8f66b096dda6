"""What commands print on a terminal, in a pipe, and as JSON."""

import io

import pytest
from hubcache.cli.output import Column, Output, number
from support.cli import Terminal

HOSTILE = "[bold red]x[/] [link=http://evil]y\x1b[2J\r\n\x9b31m\u202e:smile:"
SHOWN = r"[bold red]x[/] [link=http://evil]y\x1b[2J\r\n\x9b31m\u202e:smile:"


@pytest.fixture(autouse=True)
def _terminal_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")


def test_table_in_a_pipe_is_aligned_text() -> None:
    out = io.StringIO()
    Output(stdout=out).table(
        [Column("image"), number("size"), Column("note")], [("debian:12", "1 B", ""), ("a", 1000, "n")]
    )
    assert out.getvalue() == "IMAGE      SIZE  NOTE\ndebian:12   1 B\na          1000  n\n"


def test_table_without_rows_has_its_titles() -> None:
    out = io.StringIO()
    Output(stdout=out).table([Column("image"), number("size")], [])
    assert out.getvalue() == "IMAGE  SIZE\n"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_hostile_text_has_no_effect(stream: type[io.StringIO]) -> None:
    out, err = stream(), stream()
    output = Output(stdout=out, stderr=err)
    output.line(HOSTILE)
    output.fields([("name", HOSTILE)])
    output.table([Column("name")], [(HOSTILE,)])
    output.warning(HOSTILE)
    for text in (out.getvalue(), err.getvalue()):
        assert SHOWN in text
        assert "\x1b[2J" not in text
        assert not {"\r", "\x9b", "\u202e"} & set(text)
    assert out.getvalue().count(SHOWN) == 3
    assert out.getvalue().count("\n") == 4


def test_terminal_has_colours() -> None:
    out = Terminal()
    Output(stdout=out).line("bad", "red")
    assert out.getvalue() == "\x1b[31mbad\x1b[0m\n"


def test_no_color_switches_colours_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    Output(stdout=out).line("bad", "red")
    assert out.getvalue() == "bad\n"


def test_pipe_has_no_colours_and_long_lines_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = io.StringIO()
    Output(stdout=out).line("a word " * 20, "red")
    assert out.getvalue() == "a word " * 20 + "\n"


def test_json_is_all_that_is_printed_to_standard_output() -> None:
    out, err = io.StringIO(), io.StringIO()
    output = Output(is_json=True, stdout=out, stderr=err)
    output.line("text")
    output.heading("text")
    output.fields([("name", "value")])
    output.table([Column("a")], [("b",)])
    output.event({"a": "\x1b\u00e9"})
    output.warning("careful")
    assert out.getvalue() == '{"a": "\\u001b\\u00e9"}\n'
    assert err.getvalue() == "hubcache: warning: careful\n"


def test_text_is_all_that_is_printed_without_json() -> None:
    out = io.StringIO()
    output = Output(stdout=out)
    output.document({"a": 1})
    output.event({"a": 1})
    assert out.getvalue() == ""


def test_digest_in_a_table_stays_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    out, digest = Terminal(), "sha256:" + "a" * 64
    Output(stdout=out).table([Column("blob"), number("size"), Column("type")], [(digest, "1 B", "application/x")])
    assert f"{digest}   1 B  application/x" in out.getvalue()

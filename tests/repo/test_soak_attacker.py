"""The attacker of scripts/soak reports its connections, and an attack that did not happen is an error."""

import asyncio
import io
import sys
import time
from collections.abc import Awaitable, Callable

import pytest
from soaklib.attacker import Target, idle, slow
from soaklib.hostility import AttackFailedError, attacking
from soaklib.modules import module_command
from support.ports import free_port


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import sys, time; sys.stdin.readline()\n{code}"]


@pytest.mark.parametrize("code", ["", "print('no')", "print('ready too late')"])
def test_an_attacker_that_is_not_ready_is_an_error(code: str) -> None:
    with pytest.raises(AttackFailedError, match="not ready"), attacking(python(code), []):
        pytest.fail("nothing is measured")


def test_an_attacker_that_ends_too_early_is_an_error() -> None:
    code = "import os; print('ready', flush=True); os._exit(1)"
    with pytest.raises(AttackFailedError, match="ended too early, with 1"), attacking(python(code), []):
        time.sleep(1.0)


def test_an_attacker_that_runs_to_the_end_reports_its_connections() -> None:
    code = "print('ready\\n20 connections\\n15 connections', flush=True); time.sleep(60)"
    with attacking(python(code), []) as attacker:
        time.sleep(0.1)
    assert attacker.connections == (20, 15)


def test_an_attacker_without_a_connection_is_an_error() -> None:
    code = "print('ready\\n0 connections', flush=True); time.sleep(60)"
    with pytest.raises(AttackFailedError, match="no connection"), attacking(python(code), []):
        time.sleep(0.1)


def test_an_attack_on_a_port_where_nothing_listens_is_never_ready() -> None:
    port = free_port()
    with (
        pytest.raises(AttackFailedError, match="not ready"),
        attacking(module_command("attacker", "idle", port, port, 1), []),
    ):
        pytest.fail("nothing is measured")


@pytest.mark.parametrize("attack", [idle, slow])
async def test_connections_that_the_server_closed_are_not_held(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], attack: Callable[[Target], Awaitable[None]]
) -> None:
    """This includes connections from which the client has not yet read everything that was sent."""
    writers: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(b"x" * 10_000)
        if len(writers) % 2:
            writer.close()

    monkeypatch.setattr("soaklib.attacker.IDLE", 6)
    monkeypatch.setattr("soaklib.attacker.SLOW", 6)
    monkeypatch.setattr("sys.stdin", io.StringIO('["a", "b", "c"]\n'))
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await attack(Target(port, port, time.monotonic() + 2.5))
        for writer in writers:
            writer.close()
    ready, *counts = capsys.readouterr().out.splitlines()
    assert (ready, counts[-1]) == ("ready", "3 connections")

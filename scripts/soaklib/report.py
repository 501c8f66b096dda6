"""What a soak found, as lines for people, JSON for the README, and a verdict."""

from dataclasses import dataclass

from .endurance import Outcome
from .hostility import Attack
from .kills import Kills

MOST_GROWTH = 1.10
"""Part of the first third's memory that the last third may use."""


MOST_DELAY_SECONDS = 0.1
"""By which hostile clients may raise the 99th percentile of what others wait."""

MOST_MEMORY = 400 << 20
"""Bytes that the program may use under any attack."""


@dataclass(frozen=True)
class Row:
    """One promise: what was done, what must hold, and what was found. `holds` is the verdict."""

    fault: str
    promise: str
    found: str
    holds: bool


def rows_of_kills(kills: Kills) -> list[Row]:
    """Kills of a process that stores and evicts."""
    found = kills.findings
    fault = f"{kills.count} kills at random steps of storing, evicting and verifying (of {kills.steps:,} steps each)"
    account = found.account + found.over_cap
    return [
        Row(fault, "no wrong bytes", _first(found.wrong), not found.wrong),
        Row(fault, "nothing that was stored is lost", _first(found.lost), not found.lost),
        Row(fault, "no file without its row", _first(found.orphans), not found.orphans),
        Row(fault, "sizes add up, and the cap holds", _first(account), not account),
    ]


def rows_of_run(outcome: Outcome, seconds: float, kills: int) -> list[Row]:
    """A run of the program; `kills` of all that went wrong were kills."""
    clients, state = outcome.clients, outcome.findings.lines
    troubles = len(outcome.troubles) - kills
    fault = (
        f"{seconds / 60:.1f} minutes, {len(clients.pulls):,} pulls, {troubles} upstream faults, {kills} kills, eviction"
    )
    failed = [f"{pull.image} by the {pull.door} door: {pull.error}" for pull in outcome.failed]
    over = f"at most {max(0, outcome.over_cap):,} bytes over"
    rows = [
        Row(fault, "no client gets wrong bytes", _first(clients.wrong), not clients.wrong),
        Row(fault, "no pull fails outside of a fault's own time", _first(failed), not failed),
        Row(fault, "the cap holds, within a block for each file", over, outcome.over_cap <= 0),
        Row(fault, "the store is whole afterwards", _first(state), not state),
        Row(fault, "no traceback", _first(outcome.complaints), not outcome.complaints),
    ]
    if not kills:  # a new process begins with little
        rows += [_row_of_growth(fault, outcome, *each) for each in (("memory", 0), ("descriptors", 20), ("tasks", 20))]
    return rows


def row_of_attack(attack: Attack) -> Row:
    """What hostile clients did to others."""
    rise = attack.meanwhile - attack.before
    found = f"p99 {attack.before * 1000:.0f} → {attack.meanwhile * 1000:.0f} ms, {attack.failed} failed"
    found += f", {attack.memory >> 20} MiB"
    if attack.nginx is not None:
        found += f" (nginx: {attack.nginx * 1000:+.0f} ms)"
    holds = rise <= MOST_DELAY_SECONDS and not attack.failed and attack.memory <= MOST_MEMORY
    promise = f"others wait at most {MOST_DELAY_SECONDS * 1000:.0f} ms longer, memory below {MOST_MEMORY >> 20} MiB"
    return Row(attack.about, promise, found, holds)


def _row_of_growth(fault: str, outcome: Outcome, name: str, slack: int) -> Row:
    """Compares medians; `slack` is for small numbers, which follow the load of the moment."""
    first, last = outcome.thirds(name)
    holds = last <= first * MOST_GROWTH + slack
    return Row(fault, f"{name} of the last third as of the first", f"{last:,.0f} of {first:,.0f}", holds)


def _first(lines: list[str]) -> str:
    return f"{len(lines)}, the first: {lines[0]}" if lines else "none failed"


def table(rows: list[Row]) -> str:
    """For people, and for the README; what is done is told once."""
    lines, told = ["| what is done | promise | last result |", "|---|---|---|"], ""
    for row in rows:
        lines.append(f"| {row.fault if row.fault != told else ''} | {row.promise} | {row.found} |")
        told = row.fault
    return "\n".join(lines)

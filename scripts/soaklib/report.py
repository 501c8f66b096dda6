"""What must hold in each part of a soak, and whether it did."""

from .endurance import Outcome
from .fuzz import Fuzz
from .hostility import Attack
from .kills import Kills
from .rows import Row

MOST_GROWTH = 1.10
"""Part of the first third's memory that the last third may use."""


MOST_DELAY_SECONDS = 0.1
"""By which hostile clients may raise the 99th percentile of what others wait."""

MOST_MEMORY = 400 << 20
"""Bytes that the program may use under any attack."""


def rows_of_kills(kills: Kills) -> list[Row]:
    """Kills of a process that stores and evicts."""
    found = kills.findings
    fault = f"{kills.count} kills at random steps of storing, evicting and verifying (of {kills.steps:,} steps each)"
    account = found.account + found.over_cap
    return [
        Row(fault, "soaklib/kills", "no wrong bytes", _first(found.wrong), not found.wrong),
        Row(fault, "soaklib/kills", "nothing that was stored is lost", _first(found.lost), not found.lost),
        Row(fault, "soaklib/kills", "no file without its row", _first(found.orphans), not found.orphans),
        Row(fault, "soaklib/kills", "sizes add up, and the cap holds", _first(account), not account),
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
        Row(fault, "soaklib/endurance", "no client gets wrong bytes", _first(clients.wrong), not clients.wrong),
        Row(fault, "soaklib/endurance", "no pull fails outside of a fault's own time", _first(failed), not failed),
        Row(fault, "soaklib/endurance", "the cap holds, within a block for each file", over, outcome.over_cap <= 0),
        Row(fault, "soaklib/endurance", "the store is whole afterwards", _first(state), not state),
        Row(fault, "soaklib/endurance", "no traceback", _first(outcome.complaints), not outcome.complaints),
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
    promise = (
        f"others wait {MOST_DELAY_SECONDS * 1000:.0f} ms longer at most, memory stays below {MOST_MEMORY >> 20} MiB"
    )
    return Row(attack.about, "soaklib/hostility", promise, found, holds)


def row_of_fuzz(fuzz: Fuzz) -> Row:
    """What strangers send, as parsers read it."""
    how = "guided by coverage" if fuzz.is_guided else "by mutation"
    fault = f"{fuzz.inputs:,} request heads, CONNECTs, challenges, manifests and ranges, fuzzed {how}"
    promise = "parsers agree, and nothing is raised that is not declared"
    return Row(fault, "soaklib/fuzz", promise, _first(fuzz.findings), not fuzz.findings)


def _row_of_growth(fault: str, outcome: Outcome, name: str, slack: int) -> Row:
    """Compares medians; `slack` is for small numbers, which follow the load of the moment."""
    first, last = outcome.thirds(name)
    holds = last <= first * MOST_GROWTH + slack
    found = f"{last:,.0f} of {first:,.0f}"
    return Row(fault, "soaklib/endurance", f"{name} of the last third as of the first", found, holds)


def _first(lines: list[str]) -> str:
    return f"{len(lines)}, the first: {lines[0]}" if lines else "none"

"""Judges what each part of a soak found: the promises, and whether each holds.

A part that saw nothing proves nothing: its promises do not hold.
"""

from .fuzz import Fuzz
from .hostility import Attack
from .kills import Kills
from .outcome import Outcome, TooFewSamplesError
from .rows import Row

MOST_GROWTH = 1.10
"""How much of a resource the last third may use, as a multiple of the first third."""

MOST_DELAY_SECONDS = 0.1
"""By how much hostile clients may raise the 99th percentile of the response time of others."""

MOST_MEMORY = 400 << 20
"""Bytes that the program may use under any attack."""


def rows_of_kills(kills: Kills) -> list[Row]:
    """The promises of the store, after kills of a process that stores and evicts."""
    found = kills.findings
    fault = f"{kills.count} kills at random steps of storing, evicting and verifying (of {kills.steps:,} steps each)"
    rows = [
        ("no wrong bytes", found.wrong),
        ("nothing that was stored is lost", found.lost),
        ("no file without its row", found.orphans),
        ("sizes add up, and the cap holds", found.account + found.over_cap),
    ]
    unseen = "" if kills.count and kills.committed else f"{kills.count} killed, {kills.committed} objects stored"
    return [_row_of_lines(fault, "kills", promise, lines, unseen) for promise, lines in rows]


def rows_of_run(outcome: Outcome, seconds: float, kills: int) -> list[Row]:
    """The promises of the program in a run of `seconds`; `kills` of its faults and kills were kills."""
    clients = outcome.clients
    troubles = len(outcome.troubles) - kills
    fault = (
        f"{seconds / 60:.1f} minutes, {len(clients.pulls):,} pulls, {troubles} upstream faults, {kills} kills, eviction"
    )
    failed = [f"{pull.image} by the {pull.door} door: {pull.error}" for pull in outcome.failed]
    unseen = "" if outcome.succeeded else "no pull succeeded"
    rows = [
        _row_of_lines(fault, "endurance", "no client gets wrong bytes", clients.wrong, unseen),
        _row_of_lines(fault, "endurance", "no pull fails outside of a fault's own time", failed, unseen),
        _row_of_cap(fault, outcome.over_cap),
        _row_of_lines(fault, "endurance", "the store is whole afterwards", outcome.findings.lines, unseen),
        _row_of_lines(fault, "endurance", "no traceback", outcome.complaints, unseen),
    ]
    if not kills:  # a program that was started again uses less than before
        rows += [_row_of_growth(fault, outcome, *each) for each in (("memory", 0), ("descriptors", 20), ("tasks", 20))]
    return rows


def row_of_attack(attack: Attack) -> Row:
    """What hostile clients did to other clients and to the program's memory."""
    rise = attack.meanwhile - attack.before
    found = f"p99 {attack.before * 1000:.0f} → {attack.meanwhile * 1000:.0f} ms, {attack.failed} failed"
    found += f", {attack.memory >> 20} MiB"
    if attack.connections is not None:
        begun, ended = attack.connections
        found += f", {begun:,} connections held" + (f", {ended:,} at the end" if ended != begun else "")
    if attack.nginx is not None:
        found += f" (nginx: {attack.nginx * 1000:+.0f} ms)"
    holds = rise <= MOST_DELAY_SECONDS and not attack.failed and attack.memory <= MOST_MEMORY
    promise = (
        f"others wait {MOST_DELAY_SECONDS * 1000:.0f} ms longer at most, memory stays below {MOST_MEMORY >> 20} MiB"
    )
    return Row(attack.about, "soaklib/hostility", promise, found, holds)


def row_of_fuzz(fuzz: Fuzz) -> Row:
    """What the parsers of untrusted input did."""
    how = "guided by coverage" if fuzz.is_guided else "by mutation"
    fault = f"{fuzz.inputs:,} request heads, CONNECTs, challenges, manifests and ranges, fuzzed {how}"
    promise = "parsers agree, and only declared errors are raised"
    return _row_of_lines(fault, "fuzz", promise, fuzz.findings, "" if fuzz.inputs else "no input was tried")


def _row_of_lines(fault: str, part: str, promise: str, lines: list[str], unseen: str) -> Row:
    """A promise that holds when there are no `lines`, and when `unseen`, a reason why nothing was seen, is empty."""
    found = f"{len(lines)}, the first: {lines[0]}" if lines else unseen or "none"
    return Row(fault, f"soaklib/{part}", promise, found, not lines and not unseen)


def _row_of_cap(fault: str, over: int | None) -> Row:
    found = "never measured" if over is None else f"at most {max(0, over):,} bytes over"
    promise = "the cap holds, within a block for each file"
    return Row(fault, "soaklib/endurance", promise, found, over is not None and over <= 0)


def _row_of_growth(fault: str, outcome: Outcome, name: str, slack: int) -> Row:
    """Compares medians; `slack` allows for small numbers, which vary with the number of requests."""
    promise = f"{name} of the last third as of the first"
    try:
        first, last = outcome.thirds(name)
    except TooFewSamplesError as error:
        return Row(fault, "soaklib/endurance", promise, str(error), holds=False)
    holds = last <= first * MOST_GROWTH + slack
    return Row(fault, "soaklib/endurance", promise, f"{last:,.0f} of {first:,.0f}", holds)

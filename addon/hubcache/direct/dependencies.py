"""The dependencies that all direct connections of a process share."""

from collections.abc import Callable
from dataclasses import dataclass

from ..clients.draining import ClientGroup
from ..clients.limits import ClientLimits
from ..mitm.interception import Interception
from ..mitm.tls import TlsContexts
from ..mitm.tunnel import Connects
from ..operate.served_request import RecordingResponder


@dataclass(frozen=True, slots=True)
class DirectDependencies:
    """The parts that direct connections share.

    An idle connection is closed after `idle_seconds`, as by mitmproxy, and so is one whose client reads nothing of its
    answer for that long. `log_answer`, if any, gets a line for each answer.
    """

    interception: Interception
    connects: Connects
    tls_contexts: TlsContexts
    responder: RecordingResponder
    idle_seconds: float
    log_answer: Callable[[str], None] | None
    limits: ClientLimits
    group: ClientGroup

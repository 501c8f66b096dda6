"""Runs as a process that imports mitmproxy once, and forks a mitmdump for each request of `support.forked_mitmdump`.

The arguments are the directory of the command `mitmdump` and the descriptor of the Unix socket of the requests. The
package hubcache is not imported here: each mitmdump imports it from the script that it loads, as always.
"""

import json
import os
import signal
import socket
import sys

sys.path[0] = sys.argv[1]  # as in the command; the modules of this directory would hide others

import aiohttp.web  # noqa: E402, F401
import certifi  # noqa: E402, F401
import cryptography.x509  # noqa: E402, F401
import diskcache  # noqa: E402, F401
import markdown_it  # noqa: E402, F401
import mitmproxy.tools.dump  # noqa: E402, F401
import prometheus_client  # noqa: E402, F401
import publicsuffixlist  # noqa: E402, F401
from mitmproxy.tools.main import mitmdump  # noqa: E402

MAX_REQUEST = 1 << 20
"""Bytes of a request."""


def become_mitmdump(requests: socket.socket) -> None:
    """Fork a process for each request, and return in that process with `sys.argv`, directory and output set.

    Its parent is a process that reports two lines to the client: the process id, and later its exit code, which is
    negative for a signal.
    """
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST, 2)
        if not data:
            sys.exit()
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    output, report = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    requests.close()
    if program := os.fork():
        os.close(output)
        os.write(report, b"%d\n" % program)
        ended = os.waitid(
            os.P_PID, program, os.WEXITED | os.WNOWAIT
        )  # WNOWAIT: no other process gets this id meanwhile
        assert ended is not None
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        os.write(report, b"%d\n" % code)
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.close(report)
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    request = json.loads(data)
    sys.argv = request["command"]
    os.chdir(request["directory"])


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the children are not waited for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the programs and the tests; then the socket is closed
    become_mitmdump(socket.socket(fileno=int(sys.argv[2])))
    sys.exit(mitmdump())

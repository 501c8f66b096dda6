"""A client that measures response times: `python -m soaklib.probe PORT PATH SECONDS [COLD]`.

It requests PATH again and again, and prints the time of each response as a JSON list of seconds. Each response that is
not a 200 is one line on standard error. COLD is a path with `{}` in place of a number: every tenth time the client also
requests such a path, which is not stored. The time of that response is not in the list.
"""

import http.client
import json
import sys
import time

_TIMEOUT_SECONDS = 30.0
_PAUSE_SECONDS = 0.01


def main() -> None:
    """Measure; each request has a new connection, as dockerd's do."""
    port, path, until = int(sys.argv[1]), sys.argv[2], time.monotonic() + float(sys.argv[3])
    cold = sys.argv[4] if len(sys.argv) > 4 else ""
    taken: list[float] = []
    while time.monotonic() < until:
        if cold and len(taken) % 10 == 9 and not _request(port, cold.format(len(taken) // 10)):
            print("not fetched", file=sys.stderr)
        begun = time.monotonic()
        if not _request(port, path):
            print(f"not answered after {time.monotonic() - begun:.3f} s", file=sys.stderr)
        taken.append(time.monotonic() - begun)
        time.sleep(_PAUSE_SECONDS)
    print(json.dumps(taken))


def _request(port: int, path: str) -> bool:
    """Whether the response is a complete 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path, headers={"Connection": "close", "Accept": "*/*"})
        response = connection.getresponse()
        response.read()
        return response.status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main()

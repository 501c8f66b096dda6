"""A client that asks for the same small thing again and again: `python -m soaklib.probe PORT PATH SECONDS [COLD]`.

It prints how long each answer took, as a JSON list of seconds. What was not answered with 200 is told on standard
error. With COLD, a path with `{}` for a number, each tenth request is for something that is not stored, whose time does
not count.
"""

import http.client
import json
import sys
import time

_PATIENCE_SECONDS = 30.0
_PAUSE_SECONDS = 0.01


def main() -> None:
    """Ask on a new connection each time, as dockerd does."""
    port, path, until = int(sys.argv[1]), sys.argv[2], time.monotonic() + float(sys.argv[3])
    cold = sys.argv[4] if len(sys.argv) > 4 else ""
    taken: list[float] = []
    while time.monotonic() < until:
        if cold and len(taken) % 10 == 9 and not _ask(port, cold.format(len(taken) // 10)):
            print("not fetched", file=sys.stderr)
        begun = time.monotonic()
        if not _ask(port, path):
            print(f"not answered after {time.monotonic() - begun:.3f} s", file=sys.stderr)
        taken.append(time.monotonic() - begun)
        time.sleep(_PAUSE_SECONDS)
    print(json.dumps(taken))


def _ask(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
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

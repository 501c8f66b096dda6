"""Runs SeaweedFS until SIGTERM: `python -m benchlib.run_seaweedfs DIRECTORY FILE`.

It writes the environment variables of a client to the file, in JSON, when SeaweedFS is ready.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from fleetdemo.ports import Ports
from fleetdemo.process import StartFailed
from fleetdemo.seaweedfs import SeaweedFS


async def main(directory: Path, file: Path) -> int:
    """Run SeaweedFS with its files in `directory`, and return the exit status."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    seaweedfs = SeaweedFS(directory, Ports())
    try:
        await seaweedfs.start(os.environ)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(seaweedfs.variables))
        partial.rename(file)
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return 0
    except StartFailed as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        await seaweedfs.kill()
    return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]))))

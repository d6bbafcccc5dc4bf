"""A process of Beam on this machine; it ends with the process that started it, even if killed.

    python -m clip_jax.curation.engine.worker PID

Beam's own would wait for ever for a runner that was killed.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time

_EVERY = 0.5  # seconds


def command() -> str:
    """Returns the command of a worker for this process."""
    return f"exec {shlex.quote(sys.executable)} -m clip_jax.curation.engine.worker {os.getpid()}"


def _end_with(parent: int) -> None:
    """Ends this process when it has another parent."""
    while os.getppid() == parent:
        time.sleep(_EVERY)
    os._exit(1)


def main() -> None:
    """Runs a worker; the environment tells it where its runner is."""
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()

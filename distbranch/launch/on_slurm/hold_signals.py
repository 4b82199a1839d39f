"""Starts Python with Slurm's signals held back until the task lets them in (`Task.__call__`): `python hold_signals.py ARGUMENT...`.

A process without a handler is ended by them, and its job fails where it should be requeued. Between the start of a task and its
handlers lies the import of torch, which takes a minute from a file system that all nodes read at once.
"""

import os
import signal
import sys

HELD = {signal.SIGTERM, signal.SIGUSR2}

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])

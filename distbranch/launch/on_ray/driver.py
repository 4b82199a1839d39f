"""Ray's driver in a process of its own, for Python programs: in theirs Ray may be at work already, or an event loop, or threads.

The caller's process does not load Ray. A pipe carries the configuration there, and events, log records and the end back; whoever
finds it closed knows that the other one is gone.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from distbranch.config import Config, load_config
from distbranch.engine.results import RunResult, read_result
from distbranch.engine.run_log import Report
from distbranch.errors import StoppedEarly, UserError
from distbranch.launch.on_ray.address import cluster_address
from distbranch.launch.processes import end_process_tree
from distbranch.launch.stopping import StopRequest

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_END = (
    30  # of a driver whose caller has an error of its own, after it was asked to save everything
)
SECONDS_TO_SAVE = 120  # of a driver whose caller is gone
logger = logging.getLogger("distbranch")


def train_in_child(config: Config, report: Report) -> RunResult:
    """As `train_on_ray`, which runs in a new process that ends with the run; this one stays as it is.

    Raises:
        UserError: as `train_on_ray` says it, or the process was killed.
        StoppedEarly: after a signal to this process or a stop word.
        Interrupted: after Ctrl-C.
    """
    ray = sys.modules.get("ray")
    is_own = not config.launch.address and cluster_address(config.launch) is None
    if is_own and ray is not None and ray.is_initialized():
        logger.warning(
            "This program has joined the Ray cluster %s; the run starts one of its own on this machine. "
            "Give launch.address to train there.",
            ray.get_runtime_context().gcs_address,
        )
    here, there = Pipe()
    request = StopRequest()
    with request.receive_signals():
        with there:
            child = _start_driver(there)
        try:
            here.send((config.model_dump(mode="json"), sys.argv))
            error = _report_until_end(here, child, request, report)
        except BaseException:
            child.send_signal(
                signal.SIGINT
            )  # the first one saves everything, a second one interrupts
            raise
        finally:
            here.close()
            _wait_or_kill(child)
    if error is not None:
        raise error
    result = read_result(config.run_directory)
    assert result is not None, config.run_directory
    return result


def _start_driver(there: Connection) -> "subprocess.Popen[bytes]":
    """The child finds the modules that this process finds, and receives no Ctrl-C but ours."""
    # An empty entry of sys.path means the folder of this process, and would mean the child's own.
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(there.fileno())],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        pass_fds=[there.fileno()],
        start_new_session=True,
    )


def _report_until_end(
    here: Connection, child: "subprocess.Popen[bytes]", request: StopRequest, report: Report
) -> BaseException | None:
    """Pass on events and the wish to stop until the driver says how it ended; its error, None if all went well."""
    passed_on = False
    while True:
        # Pass on a signal, once: a second Ctrl-C raises here and ends the driver.
        if request.received is not None and not passed_on:
            passed_on = True
            child.send_signal(request.received)

        # Wait for its next word, in turns in which a signal is heard.
        if not here.poll(SECONDS_BETWEEN_LOOKS):
            continue
        try:
            kind, value = here.recv()
        except (EOFError, OSError):  # it was stopped before it had begun, or killed
            if request():
                return request.make_error(
                    "The run was stopped before it began; the same call begins it."
                )
            return UserError(
                f"The process that leads the run was lost (exit code {child.wait()}), perhaps for lack of memory. "
                "The same call resumes from the last checkpoint."
            )
        if kind == "event":
            report(value)
        elif kind == "log":
            logger.log(*value)
        else:
            error: BaseException | None = value
            return error


def _wait_or_kill(child: "subprocess.Popen[bytes]") -> None:
    with suppress(subprocess.TimeoutExpired):
        child.wait(SECONDS_TO_END)
        return
    end_process_tree(child.pid)
    child.wait()


def forward_warnings(forward: Callable[[int, str], None]) -> None:
    """Send the log records of this process there, and nowhere else: what it writes to its own terminal nobody sees."""

    def pass_on(record: logging.LogRecord) -> bool:
        forward(record.levelno, record.getMessage())
        return False

    logger.filters = [pass_on]


# ---- the child's side


def main() -> None:
    """Train as the caller asks through the pipe whose number is the only argument."""
    from distbranch.launch.on_ray.train import train_on_ray

    for one in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(
            one, lambda *_: sys.exit(1)
        )  # until the training listens itself: with everything in order
    there = Connection(int(sys.argv[1]))
    values, sys.argv = there.recv()  # those of the caller, which a run writes down
    config = load_config(values)
    lock = threading.Lock()

    def say(kind: str, value: Any) -> None:
        with lock, suppress(OSError):  # of a caller who is gone; then `_watch_caller` ends the run
            there.send((kind, value))

    forward_warnings(lambda level, text: say("log", (level, "%s", text)))
    threading.Thread(target=_watch_caller, args=(there,), daemon=True).start()
    try:
        train_on_ray(config, lambda event: say("event", event))
        say("ended", None)
    except (UserError, KeyboardInterrupt, StoppedEarly) as error:
        say("ended", error)
    except Exception as error:  # not for people: with the place in the source
        say("ended", _make_portable(error, traceback.format_exc()))


def _make_portable(error: Exception, trace: str) -> Exception:
    """The error as it is, with its traceback as a note, where it can be sent; else the traceback alone."""
    error.add_note(trace)
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
    except Exception:  # of any kind: who wrote the error's class did not think of pickle
        return RuntimeError(trace)
    return copy


def _watch_caller(there: Connection) -> None:
    """When the caller is gone the run saves everything and stops."""
    with suppress(EOFError, OSError):
        there.recv()
    os.kill(os.getpid(), signal.SIGTERM)
    # A run that cannot save itself should not outlive its caller for ever.
    threading.Event().wait(SECONDS_TO_SAVE)
    os._exit(1)


if __name__ == "__main__":
    main()

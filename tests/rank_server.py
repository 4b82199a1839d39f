"""Real processes for tests: forked by one server that has imported torch once, so that a rank costs 0.1 s instead of 5.

A job is a function of a test module. Its processes are ranks in the way of torchrun: RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT are in their environment when there are several.
"""

import ctypes
import importlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 180  # a busy machine takes four times as long as a quiet one
CRASHED = 70  # exit code of a job that ended with a traceback


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (minus the signal that killed it), what the job returned, and its output."""

    exit_code: int
    value: Any
    output: str


class RankServer:
    """Starts jobs; `stop` when no more are wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_jobs = 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parents[1]), *_python_path()]
        )
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )

    def run(
        self,
        job: Callable[..., Any],
        *,
        world_size: int = 1,
        timeout_s: float = TIMEOUT_S,
        **arguments: Any,
    ) -> list[Ended]:
        """Run `job(**arguments)` on every rank; what they returned, by rank, when all have ended.

        If one is killed by a signal or crashes the others are killed too, as a cluster's manager would do.
        """
        self.num_jobs += 1
        folder = self.folder / f"job-{self.num_jobs:03d}"
        folder.mkdir()
        request = {
            "job": (job.__module__, job.__name__),
            "arguments": arguments,
            "ranks": [
                _environment(rank, world_size, port)
                for port in [free_port()]
                for rank in range(world_size)
            ],
            "path": sys.path,
            "folder": folder,
        }
        assert self.process.stdin is not None
        pickle.dump(request, self.process.stdin)
        self.process.stdin.flush()
        pids = self._answer(timeout_s)
        try:
            codes = self._answer(timeout_s)
        except TimeoutError:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._answer(timeout_s)
            logs = "\n".join(file.read_text() for file in sorted(folder.glob("*.log")))
            raise TimeoutError(
                f"{job.__name__} did not end within {timeout_s} s:\n{logs}"
            ) from None
        return [_ended(folder, rank, code) for rank, code in enumerate(codes)]

    def call(self, job: Callable[..., Any], **arguments: Any) -> Any:
        """What one process returned; it must end well."""
        return self.call_all(job, 1, **arguments)[0]

    def call_all(self, job: Callable[..., Any], world_size: int, **arguments: Any) -> list[Any]:
        """What every rank returned; all must end well."""
        ended = self.run(job, world_size=world_size, **arguments)
        assert not any(one.exit_code for one in ended), "\n".join(one.output for one in ended)
        return [one.value for one in ended]

    def stop(self) -> None:
        """End the server."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()

    def _answer(self, timeout_s: float) -> list[int]:
        stream = self.process.stdout
        assert stream is not None
        if not select.select([stream], [], [], timeout_s)[0]:
            raise TimeoutError
        return [int(word) for word in stream.readline().split()]


def free_port() -> int:
    """A TCP port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {} if world_size == 1 else launcher_environment(rank, world_size, port)


def launcher_environment(rank: int, world_size: int, port: int = 29500) -> dict[str, str]:
    """What torchrun sets for a rank on one machine."""
    values = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
    }
    return {
        **{name: str(value) for name, value in values.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _ended(folder: Path, rank: int, code: int) -> Ended:
    file = folder / f"{rank}.pickle"
    value = pickle.loads(file.read_bytes()) if file.exists() else None
    return Ended(code, value, (folder / f"{rank}.log").read_text(errors="replace"))


# ---- the server's side


def _serve() -> None:
    _die_with_parent()
    # All that a run imports sooner or later, the lazy parts of these packages too.
    for module in (
        "distbranch.cli",
        "distbranch.launch.local",
        "distbranch.report.progress",
        "fsspec.implementations.local",
        "pytest",
        "sklearn.cluster",
        "sklearn.manifold",
        "sklearn.metrics",
        "torch._dynamo",
        "torchjd",
    ):
        importlib.import_module(module)

    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pids = [_fork(request, rank) for rank in range(len(request["ranks"]))]
        _say(pids)
        _say(_wait(pids))


def _fork(request: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = CRASHED
    try:
        code = _be_rank(request, rank)
    finally:
        os._exit(code)


def _be_rank(request: dict[str, Any], rank: int) -> int:
    _die_with_parent()
    folder = request["folder"]
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["ranks"][rank])
    sys.path[:] = request["path"]
    module, name = request["job"]
    try:
        value = getattr(importlib.import_module(module), name)(**request["arguments"])
    except SystemExit as end:
        return int(end.code or 0)
    except Exception:
        traceback.print_exc()
        return CRASHED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(value))
    return 0


def _wait(pids: list[int]) -> list[int]:
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid] < 0 or codes[pid] == CRASHED:
            for other in pids:
                if other not in codes:
                    os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in pids]


def _say(numbers: list[int]) -> None:
    os.write(1, (" ".join(map(str, numbers)) + "\n").encode())


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    _serve()

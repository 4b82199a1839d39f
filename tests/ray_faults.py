"""Faults for the workers of a tiny run on Ray, as a test planned them, and a record of which samples were seen where.

The folder that holds the run directory also holds `faults.json` (the plan), `steps.jsonl` (the record) and a mark per fault.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from net_hosts import enter
from rank_server import Ended, RankServer
from tiny_runs import train_tiny

SECONDS_TO_WAIT = 240


@dataclass(frozen=True)
class Fault:
    """In this step of this rank: `kill`, `kill board`, `raise`, `nan`, or `wait` for longer than a test does; once."""

    do: str
    rank: int
    step: int
    name: str = ""

    @property
    def mark(self) -> str:
        """The file that says that it has happened."""
        return self.name or f"{self.do}-{self.rank}-{self.step}"


def plan_faults(folder: Path, faults: Sequence[Fault] = ()) -> None:
    """Write the plan of a run whose directory lies in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faults.json").write_text(json.dumps([asdict(fault) for fault in faults]))


def await_fault(folder: Path, fault: Fault, training: "Future[Any]") -> int:
    """Wait until a fault happens; the process id of its worker. A driver that ends before says why."""
    file = folder / fault.mark

    def happened() -> bool:
        assert not training.done(), f"{fault} did not happen: {training.result()}"
        return file.exists() and bool(file.read_text())

    _wait_for(happened, f"{fault} did not happen")
    return int(file.read_text())


def _wait_for(ready: Callable[[], Any], otherwise: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not ready():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def start(
    ranks: RankServer, config: Mapping[str, Any], environment: Mapping[str, str], *, host: str = ""
) -> "Future[list[Ended]]":
    """Begin a driver of the tiny run, in the network namespace `host` if it is named; the future holds how it ended."""
    executor = ThreadPoolExecutor(1)
    arguments = {"config": config, "environment": dict(environment), "host": host}
    future = executor.submit(ranks.run, train_on_cluster, timeout_s=SECONDS_TO_WAIT, **arguments)
    executor.shutdown(wait=False)
    return future


def train_on_cluster(
    config: Mapping[str, Any], environment: Mapping[str, str], host: str
) -> dict[str, Any]:
    """A job: the driver; beside how it ended, the names of the threads that it left."""
    if host:
        enter(host)
    from distbranch.launch.on_ray import train as ray_train

    os.environ.update(environment)
    ray_train.train_worker = work
    folder = Path(config["run"]["directory"])
    (folder / "driver").write_text(str(os.getpid()))
    ended = train_tiny(config)
    return {**ended, "threads": [thread.name for thread in threading.enumerate()]}


def work(loop: dict[str, Any]) -> None:
    """What a Ray worker runs."""
    from distbranch.engine import batches, training_step
    from distbranch.launch.on_ray import worker as ray_worker
    from distbranch.tasks import TaskSet

    folder = Path(loop["attempt"]).parents[2]
    rank = int(os.environ["RANK"])
    faults = {
        fault.step: fault
        for fault in (
            Fault(**values) for values in json.loads((folder / "faults.json").read_text())
        )
        if fault.rank == rank and not (folder / fault.mark).exists()
    }
    group = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    real_step, real_take, real_losses = (
        training_step.TrainingStep._forward_and_backward,
        batches.BatchFeed.next_batch,
        TaskSet.compute_losses,
    )
    now: dict[str, Any] = {"step": 0, "indices": []}

    def take(self: batches.BatchFeed) -> tuple[Any, float]:
        batch, waited = real_take(self)
        now["indices"] = batch.indices.tolist()
        return batch, waited

    def step(self: training_step.TrainingStep, *batch: Any) -> None:
        now["step"] = self.progress.iteration + 1
        line = {
            "group": group,
            "rank": rank,
            "world_size": self.ranks.world_size,
            "time": time.time(),
            **now,
        }
        with (
            suppress(OSError),
            (folder / "steps.jsonl").open("a") as file,
        ):  # the storage may be what fails
            file.write(json.dumps(line) + "\n")
        fault = faults.get(now["step"])
        if fault is not None and fault.do != "nan":
            faults.pop(now["step"])
            _happen(fault, folder)
        real_step(self, *batch)

    def losses(self: TaskSet, *values: torch.Tensor) -> torch.Tensor:
        fault = faults.get(now["step"])
        return real_losses(self, *values) * (
            torch.nan if fault is not None and fault.do == "nan" else 1
        )

    (
        training_step.TrainingStep._forward_and_backward,
        batches.BatchFeed.next_batch,
        TaskSet.compute_losses,
    ) = (
        step,
        take,
        losses,
    )  # type: ignore[method-assign]
    ray_worker.train_worker(loop)


def _happen(fault: Fault, folder: Path) -> None:
    (folder / fault.mark).write_text(str(os.getpid()))
    if fault.do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.do == "kill board":
        import ray

        [attempt] = (folder / "tiny" / "ray").glob("2*")
        ray.kill(ray.get_actor(str(attempt), namespace="distbranch"))
    elif fault.do == "raise":
        raise IndexError("the rank met what nobody foresaw")
    elif fault.do == "wait":
        time.sleep(SECONDS_TO_WAIT)

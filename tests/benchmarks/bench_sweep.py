"""A sweep whose trials cost nothing, through the real queue, Tuner and run directories: what is left is our own cost.

`python tests/benchmarks/bench_sweep.py --help`

The driver is a process of its own, killed at half of the trials and started again, so the numbers hold for what survives.
"""

import json
import multiprocessing
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from command_line import create_work_folder, run_as_command

from distbranch.cli.terminal import show_pairs
from distbranch.config import load_config
from distbranch.config.sweep import SweepConfig
from distbranch.engine.run_directory import append_line, write_json
from distbranch.errors import UserError
from distbranch.sweep.plan import list_trials
from distbranch.sweep.shared_prefix import group_by_prefix
from distbranch.sweep.trial_status import FINISHED, SweepDirectory

WIDTHS = (8, 16, 32, 64)
SECONDS_BETWEEN_LOOKS = 0.02


@dataclass(frozen=True)
class SimulatedSweep:
    """What a sweep of trials that cost nothing took; both drivers are of the same sweep, killed at half."""

    num_trials: int
    at_a_time: int
    ms_per_trial: float  # of the first driver, from its first result on
    driver_peak_mib: float  # of the second one, which ended well
    first_result_s: float  # from the start of the first driver
    first_result_after_kill_s: float  # from the start of the second one
    finished: int
    finished_and_repeated: int


def simulate(num_trials: int, *, at_a_time: int, folder: Path) -> SimulatedSweep:
    """Run the simulated sweep in `folder`, which should be empty.

    Raises:
        UserError: the driver did not end well.
    """
    sweep = _sweep(num_trials, at_a_time, folder)
    first = _Driver(sweep)
    begun, half = first.wait_for(1), first.wait_for(num_trials // 2)
    first.process.kill()
    first.process.join()
    done_before = first.finished()
    second = _Driver(sweep)
    resumed = second.wait_for(len(done_before) + 1)
    second.process.join()
    record = folder / "driver.json"
    if second.process.exitcode or not record.exists():
        raise UserError(
            f"The driver of the simulated sweep did not end well (exit code {second.process.exitcode})."
        )
    times = [len((sweep.path / name / "times").read_text().splitlines()) for name in done_before]
    return SimulatedSweep(
        num_trials=num_trials,
        at_a_time=at_a_time,
        ms_per_trial=1000 * (half - begun) / max(1, num_trials // 2 - 1),
        driver_peak_mib=json.loads(record.read_text())["peak_mib"],
        first_result_s=begun,
        first_result_after_kill_s=resumed,
        finished=len(second.finished()),
        finished_and_repeated=sum(count > 1 for count in times),
    )


class _Driver:
    """A driver process, and the seconds since its start at which so many trials had finished."""

    def __init__(self, sweep: SweepConfig) -> None:
        self.directory = sweep.path
        self.began = time.monotonic()
        self.process = multiprocessing.get_context("spawn").Process(target=drive, args=(sweep,))
        self.process.start()

    def finished(self) -> set[str]:
        """The names of trials with a result."""
        return {path.parent.name for path in self.directory.glob("*/result.json")}

    def wait_for(self, count: int) -> float:
        """The seconds until `count` trials have finished."""
        log = self.directory / "finished"
        while self.process.is_alive():
            if (
                log.exists() and log.stat().st_size >= count
            ):  # a byte per trial: cheaper than to look into all folders
                return time.monotonic() - self.began
            time.sleep(SECONDS_BETWEEN_LOOKS)
        raise UserError(
            f"The driver of the simulated sweep ended early (exit code {self.process.exitcode})."
        )


def drive(sweep: SweepConfig) -> None:
    """The driver: plan, look at the disk, train, keep the table and the page; as `run_sweep`, but for data and latencies."""
    from distbranch.sweep.run import open_sweep_cluster

    directory = SweepDirectory(sweep.path)
    trials = list_trials(sweep)
    statuses = directory.read_statuses(trials)
    roots = [
        root
        for root in group_by_prefix(trials)
        if statuses[str(root[0].run.name)].status != FINISHED
    ]
    with open_sweep_cluster(sweep, lambda _: None):
        from ray import cloudpickle

        from distbranch.sweep.live_results import LiveResults
        from distbranch.sweep.queue import FamilyQueue
        from distbranch.sweep.shared_prefix import trainable_groups
        from distbranch.sweep.tuning import run_tune

        # Workers cannot import the main file of their driver, so the trial travels as code.
        cloudpickle.register_pickle_by_value(sys.modules[cost_nothing.__module__])
        directory.path.mkdir(exist_ok=True)
        directory.record_sweep(sweep)
        live = LiveResults(sweep, trials, directory, lambda _: None)
        queue = FamilyQueue(
            roots,
            ready=trainable_groups,
            directory=directory,
            concurrency=sweep.concurrency or 1,
            report=live,
        )
        with live.rewritten():
            run_tune(cost_nothing, queue, resources={"CPU": 1}, max_failures=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_json(Path(sweep.directory) / "driver.json", {"peak_mib": peak})


def cost_nothing(work: dict[str, Any]) -> None:
    """The trial: it reports once and writes a result."""
    from ray import tune

    config = load_config(json.loads(work["leader"]))
    append_line(config.run_directory / "times", {"at": time.time()})
    tune.report({"kind": "evaluation", "iteration": 1, "value": 0.5})
    value = 1 - 1 / (2 + config.seed % 7)
    result = {
        "name": config.run.name,
        "metrics": {"val": {"mean": {"average_precision": value}}},
        "weights": 1000 * config.model.width,
        "parameters": 1000 * config.model.width,
        "multiply_adds": 100_000 * config.model.width,
        "iterations": 1,
        "seconds": 1.0,
    }
    write_json(config.run_directory / "result.json", result)
    with (config.run_directory.parent / "finished").open("ab") as file:
        file.write(b".")
    tune.report({"kind": "ended", "reason": None})


def _sweep(num_trials: int, at_a_time: int, folder: Path) -> SweepConfig:
    base = folder / "base.yaml"
    base.write_text(f"data: {{path: {folder / 'no-data'}}}\nmethod: {{name: fixed}}\n")
    seeds = range(-(-num_trials // len(WIDTHS)))
    return SweepConfig(
        base=str(base),
        name="simulated",
        directory=str(folder),
        grid={"model.width": WIDTHS},
        seeds=tuple(seeds),
        concurrency=at_a_time,
    )


def main(
    trials: Annotated[int, typer.Option(help="Trials that cost nothing.", min=4)] = 2000,
    jobs: Annotated[int, typer.Option(help="Trials at the same time.", min=1)] = 2,
    folder: Annotated[
        Path | None, typer.Option(help="Where their directories go; a temporary folder if empty.")
    ] = None,
) -> None:
    """What a sweep costs by itself: its driver is killed at half of the trials, and the same command resumes it."""
    with create_work_folder(folder) as place:
        found = asdict(simulate(trials, at_a_time=jobs, folder=place))
    pairs = []
    for name, value in found.items():
        text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
        pairs.append((name, text))
    show_pairs(pairs)


if __name__ == "__main__":
    run_as_command(main)

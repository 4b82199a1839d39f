"""Launchers: where the ranks of a run come from. `train` chooses one; what the ranks do is the engine's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distbranch.config import Config, load_config
from distbranch.errors import UsageError
from distbranch.launch.on_ray.address import cluster_address

# They load torch, and who asks what runs (`distbranch ls`) imports this package too.
if TYPE_CHECKING:
    from distbranch.engine.results import RunResult
    from distbranch.engine.run_log import Event, Report


def train(
    config: Config | Path | str | Mapping[str, Any],
    *,
    fresh: bool = False,
    report: "Report | None" = None,
    apart: bool = False,
    config_file: Path | None = None,
    **dotted: Any,
) -> "RunResult":
    """Train one run, or resume it where it was left; a finished run is returned as it is.

    Args:
        config: a Config, a YAML file, or a nested mapping.
        fresh: start over in a new directory if the run's own exists (`name-2`, `name-3`, ...).
        report: called with what happens (progress, decisions, evaluations).
        apart: whether Ray's driver is a process of its own, for a program that is not only ours.
        config_file: that `config` was read from, if it is none itself: of a run's config.yaml is told what differs in code.
        dotted: overrides, `train("x.yaml", **{"method.alpha": 2})`.

    Raises:
        UsageError: the configuration is not valid.
        UserError: data, storage, machines or numbers are not as they should be.
        StoppedEarly: a signal asked to stop; a checkpoint holds everything. No `Exception`.
        Interrupted: Ctrl-C asked to stop; a StoppedEarly and a KeyboardInterrupt too.
    """
    from distbranch.engine.process_group import num_started_ranks
    from distbranch.engine.results import read_result
    from distbranch.engine.run_start import warn_of_other_origin
    from distbranch.launch.prepare import prepare_run

    started = num_started_ranks()
    if fresh and (started or 1) > 1:
        raise UsageError(
            "Under torchrun --fresh is not possible: every rank would choose a directory. Give another run.name."
        )
    report = report or _ignore_event
    resolved = prepare_run(
        with_started_ranks(load_config(config, dotted)), fresh=fresh, report=report
    )
    finished = read_result(resolved.run_directory)
    if finished is not None:
        report({"kind": "finished", "directory": resolved.run_url or str(resolved.run_directory)})
        return finished

    if isinstance(config, Path | str):
        config_file = Path(config)
    if config_file is not None and os.environ.get("RANK", "0") == "0":
        warn_of_other_origin(config_file, resolved)

    # Ray places the ranks where there are several, or a cluster is named; else, and under torchrun, this process is one.
    launch = resolved.launch
    if started is None and (launch.most_workers > 1 or cluster_address(launch) is not None):
        if apart:
            from distbranch.launch.on_ray.driver import train_in_child

            return train_in_child(resolved, report)
        from distbranch.launch.on_ray.train import train_on_ray

        return train_on_ray(resolved, report)
    from distbranch.launch.local import train_here

    return train_here(resolved, report)


def with_started_ranks(config: Config) -> Config:
    """The configuration of as many ranks as torchrun started, if it did: `launch.workers: 1`, the default, leaves that to it.

    Raises:
        UsageError: `launch.workers` asks for another number of ranks, or they cannot share a batch.
    """
    from distbranch.engine.process_group import num_started_ranks

    launch, found = config.launch, num_started_ranks()
    if found is None or launch.workers == found:
        return config
    if launch.workers != 1 and not launch.least_workers <= found <= launch.most_workers:
        workers = launch.workers if isinstance(launch.workers, int) else list(launch.workers)
        raise UsageError(
            f"torchrun should start as many ranks as launch.workers={workers} says, found {found} (WORLD_SIZE). Give "
            f"launch.workers={found}, or start torchrun with other numbers in --nproc-per-node and --nnodes."
        )
    return load_config(config, {"launch.workers": found})


def _ignore_event(_: "Event") -> None:
    pass

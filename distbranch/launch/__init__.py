"""Launchers: where the ranks of a run come from. `train` chooses one; what the ranks do is the engine's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distbranch.config import Config, load_config
from distbranch.engine.metrics import Event, Report
from distbranch.engine.results import RunResult, read_result
from distbranch.errors import UsageError
from distbranch.launch.on_ray.cluster import cluster_address
from distbranch.launch.prepare import prepare


def train(
    config: Config | Path | str | Mapping[str, Any], *, fresh: bool = False, report: Report | None = None, **dotted: Any
) -> RunResult:
    """Train one run, or go on with it where it was left; a finished run is returned as it is.

    Args:
        config: a Config, a YAML file, or a nested mapping.
        fresh: start over in a new directory if the run's own exists (`name-2`, `name-3`, ...).
        report: called with what happens (progress, decisions, evaluations).
        dotted: overrides, `train("x.yaml", **{"method.alpha": 2})`.

    Raises:
        UsageError: the configuration is not valid.
        UserError: data, storage, machines or numbers are not as they should be.
        StoppedEarly: a signal asked to stop; a checkpoint holds everything. No `Exception`.
        Interrupted: Ctrl-C asked to stop; a StoppedEarly and a KeyboardInterrupt too.
    """
    if fresh and started_by_torchrun():
        raise UsageError(
            "Under torchrun --fresh is not possible: every rank would choose a directory. Give another run.name."
        )
    resolved = prepare(load_config(config, dotted), fresh=fresh, report=report or _silent)
    finished = read_result(resolved.run_directory)
    if finished is not None:
        (report or _silent)({"kind": "finished", "directory": resolved.run_url or str(resolved.run_directory)})
        return finished
    launch = resolved.launch
    if not started_by_torchrun() and (launch.most_workers > 1 or cluster_address(launch) is not None):
        from distbranch.launch.on_ray.train import train_on_ray

        return train_on_ray(resolved, report or _silent)
    from distbranch.launch.local import train_here

    return train_here(resolved, report or _silent)


def started_by_torchrun() -> bool:
    """Whether this process is one of several ranks already, so that `launch.workers` and `launch.address` say nothing."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _silent(_: Event) -> None:
    pass

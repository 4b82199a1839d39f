"""Launchers: where the ranks of a run come from. `train` chooses one; what the ranks do is the engine's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distbranch.config import Config, load_config
from distbranch.engine.metrics import Event, Report
from distbranch.engine.session import read_result
from distbranch.engine.trainer import RunResult
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
        StoppedEarly: a signal asked to stop; a checkpoint holds everything.
    """
    resolved = prepare(load_config(config, dotted), fresh=fresh, report=report or _silent)
    finished = read_result(resolved.run_directory)
    if finished is not None:
        (report or _silent)({"kind": "finished", "directory": str(resolved.run_directory)})
        return finished
    if (resolved.launch.workers > 1 and "WORLD_SIZE" not in os.environ) or resolved.launch.address:
        from distbranch.launch.ray_train import train_on_ray

        return train_on_ray(resolved, report or _silent)
    from distbranch.launch.local import train_here

    return train_here(resolved, report or _silent)


def _silent(_: Event) -> None:
    pass

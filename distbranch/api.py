"""The Python interface: `distbranch.train` and `distbranch.load`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distbranch import launch
from distbranch.config import Config
from distbranch.config.paths import is_remote
from distbranch.engine.artifact import load_model
from distbranch.engine.remote_run import download_run
from distbranch.engine.results import RunResult
from distbranch.engine.run_log import Report
from distbranch.models.network import Network

__all__ = ["load", "train"]


def train(
    config: Config | Path | str | Mapping[str, Any],
    *,
    fresh: bool = False,
    report: Report | None = None,
    **dotted: Any,
) -> RunResult:
    """Train one run, or resume it where it was left; a finished run is returned as it is.

    Several workers, or a cluster, have their driver in a process of its own: the environment of this one stays as it is, and it
    may use Ray for other things before, meanwhile and afterwards.

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
    return launch.train(config, fresh=fresh, report=report, apart=True, **dotted)


def load(run_directory: Path | str) -> Network:
    """The network of a run (a folder or a URL), in eval mode: `net(images [B, 3, H, W])` gives {task name: logits}.

    uint8 images are normalised by the network; float images are taken as normalised already.

    Raises:
        UserError: no run there, or its model is damaged.
    """
    folder = Path(run_directory)
    if is_remote(str(run_directory)):
        folder = download_run(str(run_directory))
    network, _ = load_model(folder)
    return network

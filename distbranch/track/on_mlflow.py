"""A run in MLflow. The server and the experiment are taken from its own variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME).

Without a server it is a file mlflow.db in the folder of the runs, with the pictures beside it.
"""

import logging
import os
import re
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.config import Config, to_yaml
from distbranch.config.paths import hide_secrets
from distbranch.config.reading import flatten_config
from distbranch.engine.gauges import find_sweep
from distbranch.errors import UserError
from distbranch.extras import require
from distbranch.locks import hold_lock
from distbranch.track.page import FAILED, FINISHED, STOPPED

EXPERIMENT = "distbranch"
# What a server takes in one message, and of one setting.
MOST_VALUES, MOST_SETTINGS, MOST_CHARACTERS = 1000, 100, 500
SECONDS_FOR_NEW_STORE = 300  # making the tables of a new one takes long on a busy machine
ENDS = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}


class MlflowPage:
    """A run of MLflow, written by its client: the functions of `mlflow` itself would change what is global in a program."""

    def __init__(self, client: Any, run_id: str, place: str) -> None:
        self.client = client
        self.run_id = run_id
        self.place = place

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name at a step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(clean_name(name), value, now, step) for name, value in values.items()]
        for first in range(0, len(metrics), MOST_VALUES):
            self.client.log_batch(self.run_id, metrics=metrics[first : first + MOST_VALUES])

    def add_picture(self, name: str, pixels: np.ndarray, step: int, layer: str) -> None:
        """A picture, uint8 [H, W, 3]: an artifact."""
        file = f"{name}/step-{step:08d}-{clean_name(layer)}.png"
        self.client.log_image(self.run_id, pixels, artifact_file=file)

    def finish(self, end: str, summary: Mapping[str, float]) -> None:
        """Final values, and how it ended."""
        if summary:
            self.add_values(summary, 0)
        self.client.set_terminated(self.run_id, ENDS[end])


def open_mlflow_page(config: Config, identity: str | None) -> tuple[MlflowPage, str]:
    """See `page.open_page`.

    Raises:
        UserError: the package is absent, or the folder of the runs cannot be in the address of a file.
    """
    require("mlflow", "mlflow", "track=mlflow")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    folder = Path(config.run_directory).parent
    server = os.environ.get("MLFLOW_TRACKING_URI")
    artifacts = None
    # Several trials may begin at the same moment, of which one makes the tables.
    alone: Any = nullcontext()
    if server is None:
        # The path in such an address ends there: the file would lie elsewhere.
        if "?" in str(folder):
            raise UserError(
                f"the folder {folder} of the runs should have no '?' in its path for mlflow.db: rename it, or set MLFLOW_TRACKING_URI"
            )
        server = f"sqlite:///{folder / 'mlflow.db'}"
        artifacts = (folder / "mlflow-artifacts").as_uri()
        alone = hold_lock(folder / ".mlflow.lock", patience_s=SECONDS_FOR_NEW_STORE)
    with alone:
        client = MlflowClient(tracking_uri=server)
        experiment = _find_experiment(client, artifacts)
        if identity is None:
            identity = _begin_run(client, experiment, config)
        else:
            client.update_run(identity, status="RUNNING")
    return MlflowPage(client, identity, server), identity


def _find_experiment(client: Any, artifacts: str | None) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, artifact_location=artifacts))


def _begin_run(client: Any, experiment: str, config: Config) -> str:
    """A new run with its configuration, as settings to compare and as a file that is whole."""
    from mlflow.entities import Param

    tags = {"directory": str(config.run_directory)}
    sweep = find_sweep(config.run_directory)
    if sweep is not None:
        tags["sweep"] = sweep
    run = client.create_run(experiment, run_name=config.run.name, tags=tags)
    run_id = str(run.info.run_id)
    settings = [
        Param(key, hide_secrets(str(value))[:MOST_CHARACTERS])
        for key, value in flatten_config(config).items()
    ]
    for first in range(0, len(settings), MOST_SETTINGS):
        client.log_batch(run_id, params=settings[first : first + MOST_SETTINGS])
    client.log_text(run_id, hide_secrets(to_yaml(config)), "config.yaml")
    return run_id


def clean_name(name: str) -> str:
    """A name that MLflow takes: whatever else stands in it becomes its number, so that two names stay two.

    Example:
        >>> clean_name("val/5 o'clock")
        'val/5 o-27-clock'
    """
    return re.sub(r"[^/\w.\- ]", lambda found: f"-{ord(found[0]):x}-", name)

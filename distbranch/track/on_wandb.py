"""A run on Weights & Biases. Project, entity, key and mode are taken from its own variables (WANDB_PROJECT, WANDB_MODE, ...)."""

import json
import os
import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import psutil

from distbranch.config import Config
from distbranch.config.paths import hide_secrets
from distbranch.engine.gauges import find_sweep
from distbranch.errors import UserError
from distbranch.extras import require
from distbranch.track.page import FINISHED, STOPPED

PROJECT = "distbranch"
# What all is drawn over. With wandb's own steps a line would be kept back until the next step, and lost with the process.
STEP = "iteration"
SECONDS_TO_TEAR_DOWN = 2.0


class WandbPage:
    """A `wandb.Run`, which hands everything to a process of its own and so returns at once."""

    def __init__(self, wandb: Any, run: Any) -> None:
        self.wandb = wandb
        self.run = run

    @property
    def place(self) -> str:
        """Its address; offline the folder from which `wandb sync` sends it."""
        return os.path.dirname(self.run.dir) if self.run.offline else str(self.run.url)

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name at a step."""
        self.run.log({STEP: step, **values})

    def add_picture(self, name: str, pixels: np.ndarray, step: int, layer: str) -> None:
        """A picture, uint8 [H, W, 3]."""
        self.run.log({STEP: step, name: self.wandb.Image(pixels, caption=layer)})

    def finish(self, end: str, summary: Mapping[str, float]) -> None:
        """Final values, and how it ended: a stopped run counts as preempted until it is resumed."""
        self.run.summary.update(dict(summary))
        if end == STOPPED:
            self.run.mark_preempting()
        self.run.finish(exit_code=0 if end == FINISHED else 1)


def open_wandb_page(config: Config, identity: str | None) -> tuple[WandbPage, str]:
    """See `page.open_page`.

    Raises:
        UserError: the package is absent, or nobody has logged in.
    """
    wandb = require("wandb", "wandb", "track=wandb")
    options: dict[str, Any] = {"console": "off", "silent": True, "finish_timeout": 60.0}
    # A program waits at its end for wandb to give up, and its own 90 seconds are long.
    options["init_timeout"] = float(os.environ.get("WANDB_INIT_TIMEOUT", "30"))
    mode = os.environ.get("WANDB_MODE", "online")
    # Else it would ask at the terminal, where nobody expects it.
    if mode in ("online", "run") and not wandb.login(prompt=False, verify=False):
        raise UserError(
            "found no key: run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
        )
    identity = identity or secrets.token_hex(4)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=identity,
        resume="allow",
        name=config.run.name,
        group=find_sweep(config.run_directory),
        dir=os.environ.get("WANDB_DIR", str(config.run_directory)),
        config=json.loads(hide_secrets(json.dumps(config.model_dump(mode="json")))),
        reinit="create_new",
        settings=wandb.Settings(**options),
    )
    run.define_metric(STEP, hidden=True)
    run.define_metric("*", step_metric=STEP)
    return WandbPage(wandb, run), identity


def end_wandb_process(since: float) -> None:
    """End the process of wandb that was started since then (seconds since 1970).

    At the end of a program wandb waits for it, and so for a server that does not answer, for minutes.
    """
    started = [
        child
        for child in psutil.Process().children()
        if child.name() == "wandb-core" and child.create_time() >= since
    ]
    if not started:
        return
    # First told to end, for else wandb looks for it at the end of the program, and says so.
    teller = threading.Thread(target=_tear_down, daemon=True)
    teller.start()
    teller.join(SECONDS_TO_TEAR_DOWN)
    for child in started:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _tear_down() -> None:
    # Whatever it says of a process that is killed is of no interest.
    with suppress(Exception):
        require("wandb", "wandb", "track=wandb").teardown()

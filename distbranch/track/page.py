"""What a tracker's page of a run can take, and which trackers there are."""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from distbranch.config import Config

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


class Page(Protocol):
    """The page of one run; its methods may take long and raise whatever the tracker raises."""

    @property
    def place(self) -> str:
        """Where people find it."""
        ...

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        """Add numbers by name at a step."""

    def add_picture(self, name: str, pixels: np.ndarray, step: int, layer: str) -> None:
        """Add a picture of the decision about a layer, uint8 [H, W, 3]."""

    def finish(self, end: str, summary: Mapping[str, float]) -> None:
        """Bring everything to where it belongs; `summary` is what is final, of a run that has finished."""


# From the configuration and the name that the run's page has in the tracker, None if it has none: the page and that name.
OpenPage = Callable[[Config, str | None], tuple[Page, str]]


def open_page(tracker: str, config: Config, identity: str | None) -> tuple[Page, str]:
    """The page of a run in a tracker, and the name by which it is found again.

    Args:
        tracker: as `track` of the configuration names it.
        config: of the run.
        identity: that name, of a run that is resumed.

    Raises:
        UserError: the tracker's package is not installed.
    """
    # Loaded when it is asked for: both take seconds.
    if tracker == "wandb":
        from distbranch.track.on_wandb import open_wandb_page

        return open_wandb_page(config, identity)
    from distbranch.track.on_mlflow import open_mlflow_page

    return open_mlflow_page(config, identity)


def abandon_page(tracker: str, since: float) -> None:
    """Leave nothing behind of a page that failed or hangs for which the program would wait at its end.

    Args:
        tracker: as `track` of the configuration names it.
        since: when the page was opened, in seconds since 1970.
    """
    if tracker == "wandb":
        from distbranch.track.on_wandb import end_wandb_process

        end_wandb_process(since)

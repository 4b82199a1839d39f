"""For jobs of the tests: with this folder on PYTHONPATH every training step takes so many seconds longer (TEST_SECONDS_PER_STEP),
and each rank writes down which cores and threads it trains with (into the folder TEST_RANKS).

A tiny run is over before anything can be done to it; its processes are started by Slurm and Ray, out of a test's reach.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

STEP, TENSORBOARD = "distbranch.engine.training_step", "distbranch.report.tensorboard"


class Paced(importlib.abc.MetaPathFinder):
    """Finds the modules as always, and changes them once they are loaded."""

    def find_spec(self, name: str, *_: Any) -> Any:
        if name not in (STEP, TENSORBOARD):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            pace(module) if name == STEP else draw_nothing(module)

        spec.loader.exec_module = exec_module
        return spec


def pace(module: ModuleType) -> None:
    real = module.TrainingStep._forward_and_backward

    def step(self: Any, *batch: Any) -> None:
        if "TEST_RANKS" in os.environ:
            describe_rank()
        time.sleep(float(os.environ["TEST_SECONDS_PER_STEP"]))
        real(self, *batch)

    module.TrainingStep._forward_and_backward = step


def describe_rank() -> None:
    import torch

    given = os.environ
    name = "-".join(
        (given["SLURMD_NODENAME"], given.get("SLURM_RESTART_COUNT", "0"), str(os.getpid()))
    )
    about = {"cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}
    Path(given["TEST_RANKS"], f"{name}.json").write_text(json.dumps(about))


def draw_nothing(module: ModuleType) -> None:
    module.log_decision = lambda *_: (
        None
    )  # pictures of decisions take longer than all the rest of a tiny run


if "TEST_SECONDS_PER_STEP" in os.environ:
    sys.meta_path.insert(0, Paced())

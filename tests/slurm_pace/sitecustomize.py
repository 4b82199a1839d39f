"""For jobs of the tests: with this folder on PYTHONPATH every training step takes so many seconds longer (TEST_SECONDS_PER_STEP),
but for those up to the number that the file TEST_QUICK_UNTIL holds, and each rank writes down which cores and threads it trains
with (into the folder TEST_RANKS).

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

STEP = "distbranch.engine.training_step"


class Paced(importlib.abc.MetaPathFinder):
    """Finds the module of a step as always, and changes it once it is loaded."""

    def find_spec(self, name: str, *_: Any) -> Any:
        if name != STEP:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            pace(module)

        spec.loader.exec_module = exec_module
        return spec


def pace(module: ModuleType) -> None:
    real = module.TrainingStep._forward_and_backward

    def step(self: Any, *batch: Any) -> None:
        if "TEST_RANKS" in os.environ:
            describe_rank()
        if self.progress.iteration + 1 > read_quick_steps():
            time.sleep(float(os.environ["TEST_SECONDS_PER_STEP"]))
        real(self, *batch)

    module.TrainingStep._forward_and_backward = step


def read_quick_steps() -> int:
    file = os.environ.get("TEST_QUICK_UNTIL")
    return int(Path(file).read_text()) if file else 0


def describe_rank() -> None:
    import torch

    given = os.environ
    name = "-".join(
        (given["SLURMD_NODENAME"], given.get("SLURM_RESTART_COUNT", "0"), str(os.getpid()))
    )
    about = {"cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}
    Path(given["TEST_RANKS"], f"{name}.json").write_text(json.dumps(about))


if "TEST_SECONDS_PER_STEP" in os.environ:
    sys.meta_path.insert(0, Paced())

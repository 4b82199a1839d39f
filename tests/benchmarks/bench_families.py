"""Which families of timm are chains of units: one small model of each, divided at its own image size.

    python tests/benchmarks/bench_families.py

Prints per family the model, its units and how many of them tasks may skip, or why it is refused.
"""

import signal
from collections import defaultdict
from types import FrameType
from typing import Annotated

import timm
from command_line import run_as_command
from typer import Option

from distbranch.errors import UserError
from distbranch.models.backbone import Backbone

# Parts of names, of the smallest models first; without one the shortest name is taken.
SMALL = [
    *("test_", "atto", "femto", "pico", "nano", "xxtiny", "xtiny", "micro", "tiny", "xxsmall"),
    *("xx_small", "xsmall", "extra_small", "mini", "small", "_s0", "_t0", "_b0", "_s", "_050"),
    *("18", "26", "_00", "s12"),
]


def order_by_size(name: str) -> tuple[int, int, str]:
    """A key that sorts small models first."""
    places = [place for place, part in enumerate(SMALL) if part in name]
    return min(places, default=len(SMALL)), len(name), name


def stop_waiting(_: int, __: FrameType | None) -> None:
    raise TimeoutError("took too long")


def describe_chain(name: str) -> str:
    """Its units in words; UserError where it is no chain."""
    config = timm.get_pretrained_cfg(name)
    size = tuple(config.input_size[1:]) if config else (224, 224)
    plans = Backbone(f"timm:{name}", size).plans
    return f"{len(plans)} units, {sum(plan.may_skip for plan in plans)} may be skipped"


def main(
    seconds: Annotated[int, Option(help="For a model; one that takes longer is left out.")] = 40,
) -> None:
    """Print per family of timm a small model, its units and how many of them tasks may skip, or why it is refused."""
    families = defaultdict(list)
    for name in timm.list_models():
        families[timm.models.model_entrypoint(name).__module__].append(name)
    signal.signal(signal.SIGALRM, stop_waiting)
    num_chains = 0
    for family in sorted(families):
        name = min(families[family], key=order_by_size)
        signal.alarm(seconds)
        try:
            found = describe_chain(name)
            num_chains += 1
        except (UserError, TimeoutError) as error:
            found = f"refused: {error}"
        signal.alarm(0)
        print(f"{family.rpartition('.')[2]:24} {name:36} {found}", flush=True)
    print(f"{num_chains} of {len(families)} families")


if __name__ == "__main__":
    run_as_command(main)

"""Which rank this process is, as the environment says: torchrun sets the variables, and what others left behind is refused."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from distbranch.errors import UserError

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
OF_SEVERAL = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # all are needed where there are several ranks
LARGEST_PORT = 65_535


@dataclass(frozen=True)
class LauncherEnvironment:
    """This process among those that were started together; one that was started alone is rank 0 of 1."""

    rank: int
    world_size: int


def read_launcher_environment() -> LauncherEnvironment:
    """What RANK, WORLD_SIZE and their like say.

    Raises:
        UserError: they do not fit together, with what is set, what is missing and what to do.
    """
    found = {name: os.environ[name].strip() for name in (*NUMBERS, "MASTER_ADDR") if name in os.environ}
    problems = list(_find_malformed(found)) or list(_find_misfits(found))
    if problems:
        named = ", ".join(f"{name}={value}" for name, value in found.items())
        raise UserError(
            f"The environment says that this is one of several ranks, but {' and '.join(problems)} (found {named}). Start the ranks with "
            f"torchrun, or, for a process by itself, `unset {' '.join(found)}`."
        )
    return LauncherEnvironment(int(found.get("RANK", "0")), int(found.get("WORLD_SIZE", "1")))


def _find_malformed(found: Mapping[str, str]) -> Iterator[str]:
    for name, value in found.items():
        if not value:
            yield f"{name} is empty"
        elif name in NUMBERS and not (value.isascii() and value.isdigit()):
            yield f"{name} should be a whole number"


def _find_misfits(found: Mapping[str, str]) -> Iterator[str]:
    numbers = {name: int(value) for name, value in found.items() if name in NUMBERS}
    world_size = numbers.get("WORLD_SIZE", 1)
    if world_size < 1:
        yield "WORLD_SIZE should be 1 or more"
        return
    missing = []
    if world_size > 1:
        missing = [name for name in OF_SEVERAL if name not in found]
    elif "RANK" in found and "WORLD_SIZE" not in found:
        missing = ["WORLD_SIZE"]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        yield f"{' and '.join(missing)} {verb} missing"
        return
    local_size = numbers.get("LOCAL_WORLD_SIZE", world_size)
    if numbers.get("RANK", 0) >= world_size:
        yield f"RANK should be below the {world_size} that there are"
    if numbers.get("LOCAL_RANK", 0) >= local_size:
        yield f"LOCAL_RANK should be below the {local_size} that there are on this machine"
    if not 1 <= local_size <= world_size:
        yield f"LOCAL_WORLD_SIZE should be from 1 to the {world_size} of WORLD_SIZE"
    if not 0 < numbers.get("MASTER_PORT", 1) <= LARGEST_PORT:
        yield f"MASTER_PORT should be from 1 to {LARGEST_PORT}"

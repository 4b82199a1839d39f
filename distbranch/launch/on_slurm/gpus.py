"""GPUs of a job of Slurm: how many it asks for on each node, in any of the ways that sbatch knows, and how many it got."""

import os
import re
from collections.abc import Mapping

from distbranch.errors import UsageError

WHOLE_JOB = "gpus"
PER_NODE = ("gpus-per-node", "gpus-per-task")  # a job has one task on each node
RESOURCES = ("gres", "tres-per-node", "tres-per-task")
PER_SOCKET = "gpus-per-socket"
OPTIONS = (WHOLE_JOB, *PER_NODE, *RESOURCES, PER_SOCKET)
SHARED = ("mps", "shard")  # parts of a GPU, which the job sees as one


def gpus_per_node(own: int, options: Mapping[str, str], *, nodes: int) -> int:
    """The GPUs that a job asks for on each node.

    Args:
        own: what --gpus-per-node says, 0 if nothing.
        options: of sbatch, without dashes in front.
        nodes: of the job.

    Raises:
        UsageError: two ways that do not agree, or one that leaves open how many GPUs each node has.
    """
    found = {f"--gpus-per-node {own}": own} if own else {}
    for option in OPTIONS:
        if option in options:
            found[f"--sbatch {option}={options[option]}"] = _count(option, options[option], nodes)
    asked = {words: count for words, count in found.items() if count}
    if len(set(asked.values())) > 1:
        raise UsageError(f"GPUs are asked for in ways that do not agree, {', '.join(asked)}: keep one of them.")
    return max(asked.values(), default=0)


def are_asked_for(options: Mapping[str, str]) -> bool:
    """Whether options of sbatch ask for GPUs, so that --gpus-per-node should not ask again."""
    return any(_count(option, options[option], nodes=1) for option in OPTIONS if option in options)


def gpus_of_this_node() -> int | None:
    """The GPUs that Slurm gave the job on this node; None where it does not say."""
    if count := os.environ.get("SLURM_GPUS_ON_NODE"):
        return int(count)
    if numbers := os.environ.get("SLURM_JOB_GPUS"):  # alone where --exclusive brought them
        return len(numbers.split(","))
    return None


def _count(option: str, value: str, nodes: int) -> int:
    """How many GPUs one option asks for on each node."""
    items = value.split(",")
    if option in RESOURCES:
        return sum(_count_resource(item) for item in items)
    count = sum(_last_number(item) for item in items)
    if option == PER_SOCKET:
        raise UsageError(
            f"--sbatch {option}={value} leaves open how many GPUs each node has: use --gpus-per-node, or --sbatch gpus-per-node=TYPE:N."
        )
    if option == WHOLE_JOB and count and nodes > 1:
        raise UsageError(
            f"--sbatch {option}={value} lets Slurm divide the GPUs over --nodes {nodes} as it likes: use --gpus-per-node, or "
            "--sbatch gpus-per-node=TYPE:N."
        )
    return count


def _count_resource(item: str) -> int:
    """GPUs of `gpu`, `gpu:2`, `gpu:a100:2`, `gres/gpu=2`, ...; 0 for another resource."""
    words = item.strip().removeprefix("gres:").removeprefix("gres/")
    name = re.split("[:=/]", words)[0].lower()
    if name in SHARED:
        return 1
    return _last_number(words) if name == "gpu" else 0


def _last_number(item: str) -> int:
    """The number after an optional name and type; without one Slurm takes 1."""
    last = re.split("[:=]", item.partition("(")[0].strip())[-1]
    return int(last) if last.isdecimal() else 1

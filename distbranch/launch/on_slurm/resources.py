"""What a job of Slurm asks for, as people write it: options of sbatch, GPUs in any of its ways, and what the shell may add.

sbatch hands all of the shell's environment down to a job. In a job, Slurm's variables describe that job: a new one would take
them for its own and bind its tasks to the wrong cores, or refuse to start. And sbatch lets SBATCH_* variables of a user's profile
win over what stands in the batch script.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from distbranch.errors import UsageError

# Options of sbatch that this package sets or depends on, and what to use in their place.
OWN_OPTIONS = {
    "nodes": "--nodes",
    "cpus-per-task": "--cpus-per-node",
    "time": "--time",
    "signal": "--signal-delay",
    "ntasks": "launch.workers (a job has one task on each node)",
    "ntasks-per-node": "launch.workers (a job has one task on each node)",
    "array": "`distbranch submit slurm-array`",
    "output": "`distbranch logs`",
    "error": "`distbranch logs`",
    "open-mode": "`distbranch logs`",
}
OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
OF_THE_SITE = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")
# Where the variables are not SBATCH_ and the option's name.
VARIABLES = {
    "time": ("SBATCH_TIMELIMIT",),
    "mem": ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
    "array": ("SBATCH_ARRAY_INX",),
    "requeue": ("SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"),
}
WHOLE_JOB = "gpus"
PER_NODE = ("gpus-per-node", "gpus-per-task")  # a job has one task on each node
RESOURCES = ("gres", "tres-per-node", "tres-per-task")
PER_SOCKET = "gpus-per-socket"
OPTIONS = (WHOLE_JOB, *PER_NODE, *RESOURCES, PER_SOCKET)
SHARED = ("mps", "shard")  # parts of a GPU, which the job sees as one
# What the batch script need not name to be against: GPUs that count are in it, and it waits for nobody.
ALWAYS_OURS = ("array", "error", "wait", *OPTIONS)


@dataclass(frozen=True)
class Resources:
    """What is asked of Slurm for one run; `memory` per node as Slurm writes it (64G), `further`: other options of sbatch."""

    partition: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_node: int | None = None
    timeout_min: int = 60
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    memory: str | None = None
    exclusive: bool = False
    job_name: str | None = None
    signal_delay_s: int = 90
    port: int | None = None
    further: Mapping[str, str] = field(default_factory=dict)
    executor: Literal["slurm", "local"] = "slurm"

    @property
    def num_gpus(self) -> int:
        """GPUs of each node, in whatever way they are asked for."""
        return count_gpus_per_node(self.gpus_per_node, self.further, nodes=self.nodes)


def parse_minutes(text: str) -> int:
    """A time limit as Slurm writes it (`90`, `12:00:00`, `2-00:00:00`), in whole minutes.

    Raises:
        UsageError: another form, or less than a minute.
    """
    found = re.fullmatch(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?", text.strip())
    if found is None:
        raise UsageError(
            f"--time is written MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS, such as 12:00:00, found '{text}'."
        )
    days, first, second, third = (int(part or 0) for part in found.groups())
    # What the numbers mean depends on how many there are: MINUTES[:SECONDS] without days, HOURS[:MINUTES[:SECONDS]] after them.
    if found["days"] is not None:
        seconds = 86400 * days + 3600 * first + 60 * second + third
    elif found["third"] is not None:
        seconds = 3600 * first + 60 * second + third
    else:
        seconds = 60 * first + second
    if seconds < 60:
        raise UsageError(f"--time should be at least a minute, found '{text}'.")
    return -(-seconds // 60)


def parse_further_options(pairs: Sequence[str], *, gpus_per_node: int) -> dict[str, str]:
    """Further options of sbatch from KEY=VALUE, and GPUs that a variable of sbatch asks for where nothing else does.

    Raises:
        UsageError: no pair, or an option that this package has a word of its own for.
    """
    options = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise UsageError(f"--sbatch takes KEY=VALUE, such as --sbatch nodelist=n1, found '{pair}'.")
        options[key.lstrip("-").replace("_", "-")] = value
    # All of them in one message, so that nobody corrects one after the other.
    taken = [f"{OWN_OPTIONS[key]} in place of --sbatch {key}={options[key]}" for key in OWN_OPTIONS if key in options]
    if taken:
        raise UsageError(f"Give {', and '.join(taken)}.")
    if gpus_per_node or has_gpu_options(options):
        return options
    return {**read_gpu_options(), **options}


def read_gpu_options() -> dict[str, str]:
    """What variables of sbatch ask of GPUs, as the options that they stand for."""
    found = {}
    for option in OPTIONS:
        value = os.environ.get(_list_variables(option)[0])
        if value:
            found[option] = value
    return found


@contextmanager
def restrict_environment(options: Collection[str]) -> Iterator[None]:
    """The environment in which sbatch is called with these options: nothing of another job, and no variable against them."""
    before = dict(os.environ)
    against = {name for option in (*options, *ALWAYS_OURS) for name in _list_variables(option)}
    for name in before:
        if name in against or _is_of_another_job(name, before):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _is_of_another_job(name: str, environment: Mapping[str, str]) -> bool:
    return "SLURM_JOB_ID" in environment and name.startswith(OF_A_JOB) and name not in OF_THE_SITE


def _list_variables(option: str) -> tuple[str, ...]:
    return VARIABLES.get(option, (f"SBATCH_{option.upper().replace('-', '_')}",))


def count_gpus_per_node(own: int, options: Mapping[str, str], *, nodes: int) -> int:
    """The GPUs that a job asks for on each node.

    Args:
        own: what --gpus-per-node says, 0 if nothing.
        options: of sbatch, without dashes in front.
        nodes: of the job.

    Raises:
        UsageError: two ways that do not agree, or one that leaves open how many GPUs each node has.
    """
    found = {}
    if own:
        found[f"--gpus-per-node {own}"] = own
    for option in OPTIONS:
        if option in options:
            found[f"--sbatch {option}={options[option]}"] = _count_gpus(option, options[option], nodes)
    asked = {words: count for words, count in found.items() if count}
    if len(set(asked.values())) > 1:
        raise UsageError(f"GPUs are asked for in ways that do not agree, {', '.join(asked)}: keep one of them.")
    return max(asked.values(), default=0)


def has_gpu_options(options: Mapping[str, str]) -> bool:
    """Whether options of sbatch ask for GPUs, so that --gpus-per-node should not ask again."""
    return any(_count_gpus(option, options[option], nodes=1) for option in OPTIONS if option in options)


def count_gpus_of_this_node() -> int | None:
    """The GPUs that Slurm gave the job on this node; None where it does not say."""
    if count := os.environ.get("SLURM_GPUS_ON_NODE"):
        return int(count)
    if numbers := os.environ.get("SLURM_JOB_GPUS"):  # alone where --exclusive brought them
        return len(numbers.split(","))
    return None


def _count_gpus(option: str, value: str, nodes: int) -> int:
    """How many GPUs one option asks for on each node."""
    items = value.split(",")
    if option in RESOURCES:
        return sum(_count_resource(item) for item in items)
    count = sum(_parse_number(item) for item in items)
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
    return _parse_number(words) if name == "gpu" else 0


def _parse_number(item: str) -> int:
    """The number after an optional name and type; without one Slurm takes 1."""
    last = re.split("[:=]", item.partition("(")[0].strip())[-1]
    return int(last) if last.isdecimal() else 1

"""What a job of Slurm asks for, as people write it: options of sbatch and srun, GPUs in any way, and what the shell may add.

sbatch hands all of the shell's environment down to a job. In a job, Slurm's variables describe that job: a new one would take
them for its own and bind its tasks to the wrong cores, or refuse to start. And sbatch lets SBATCH_* variables of a user's profile
win over what stands in the batch script.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from distbranch.errors import UsageError
from distbranch.launch.on_slurm.containers import Container

# Options of sbatch that this package sets or depends on, and what to use in their place: of two ways to ask for a thing sbatch
# would take the last one in silence.
OWN_OPTIONS = {
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
    "constraint": "--constraint",
    "mem": "--mem",
    "job-name": "--job-name",
    "nodes": "--nodes",
    "cpus-per-task": "--cpus-per-node",
    "time": "--time",
    "signal": "--signal-delay",
    "wait": "--wait",
    "no-requeue": "a longer --time (a job that reaches its limit saves everything and queues again)",
    "ntasks": "launch.workers (a job has one task on each node)",
    "ntasks-per-node": "launch.workers (a job has one task on each node)",
    "array": "`distbranch submit slurm-array`",
    "output": "`distbranch logs`",
    "error": "`distbranch logs`",
    "open-mode": "`distbranch logs`",
}
# The same of srun. --cpu-bind is not among them: ours comes first, and the last one counts.
OWN_SRUN_OPTIONS = {
    **OWN_OPTIONS,
    "gpus-per-node": "--gpus-per-node",
    "container-image": "--container",
    "container-mounts": "--mounts",
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
# Ways to ask for GPUs; the first three leave a number, the others a list of resources.
BY_NUMBER = ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
BY_RESOURCE = ("gres", "tres-per-node", "tres-per-task")
GPU_OPTIONS = (*BY_NUMBER, *BY_RESOURCE)
SHARED = ("mps", "shard")  # parts of a GPU, which the job sees as one
# What submitit writes into every batch script, and what a script need not name to be against: GPUs that count are in it, and it
# waits for nobody.
ALWAYS_OURS = ("array", "output", "error", "open-mode", "signal", "wait", *GPU_OPTIONS)


@dataclass(frozen=True)
class Resources:
    """What is asked of Slurm for one run.

    `gpu_type`: as the site calls it (a100, 1g.10gb); `memory` per node as Slurm writes it (64G); `further`: other options of sbatch,
    with an empty value those that take none; `setup`: lines of the batch script before the tasks; `srun`: other options of srun, as
    it takes them.
    """

    partition: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    gpu_type: str | None = None
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
    setup: Sequence[str] = ()
    srun: Sequence[str] = ()
    container: Container | None = None
    executor: Literal["slurm", "local"] = "slurm"

    @property
    def num_gpus(self) -> int:
        """GPUs of each node, in whatever way they are asked for.

        Raises:
            UsageError: two ways that do not agree, or one that leaves open how many GPUs each node has.
        """
        asked = {f"--sbatch {option}": count for option, count in count_gpus(self.further).items()}
        leaves_open = "--sbatch gpus-per-socket" in asked or (
            self.nodes > 1 and "--sbatch gpus" in asked
        )
        if self.gpus_per_node:
            asked["--gpus-per-node"] = self.gpus_per_node
        if leaves_open or len(set(asked.values())) > 1:
            ways = ", ".join(f"{way} ({count})" for way, count in asked.items())
            raise UsageError(
                f"GPUs should be asked for in one way that says how many each of --nodes {self.nodes} has, found {ways}: use "
                "--gpus-per-node, or --sbatch gpus-per-node=TYPE:N."
            )
        return max(asked.values(), default=0)


def count_gpus(options: Mapping[str, str]) -> dict[str, int]:
    """The options of sbatch that ask for GPUs, each with the number it asks for; those that ask for none are left out."""
    found = {}
    for option in GPU_OPTIONS:
        items = options.get(option, "").split(",")
        found[option] = sum(
            _count_item(item, is_resource=option in BY_RESOURCE) for item in items if item
        )
    return {option: count for option, count in found.items() if count}


def _count_item(item: str, *, is_resource: bool) -> int:
    """GPUs of `2`, `a100:2`, or of a resource: `gpu`, `gpu:a100:2`, `gres/gpu=2`, ...; without a number Slurm takes 1."""
    words = re.split("[:=]", re.sub(r"^gres[:/]|\(.*", "", item.strip()))
    if is_resource and words[0] in SHARED:
        return 1
    if is_resource and words[0] != "gpu":
        return 0
    return int(words[-1]) if words[-1].isdecimal() else 1


def parse_gpus(text: str) -> tuple[str | None, int]:
    """The type, if one is given, and the number of `2`, `a100:2` or `1g.10gb:2` (parts of a GPU, by MIG).

    Raises:
        UsageError: another form.
    """
    kind, _, number = text.strip().rpartition(":")
    if not number.isdecimal() or not re.fullmatch(r"[\w.+-]*", kind):
        raise UsageError(
            f"--gpus-per-node is written NUMBER or TYPE:NUMBER, such as 2, a100:2 or 1g.10gb:2 (`sinfo -o '%P %G'` shows the types), "
            f"found '{text}'."
        )
    return kind or None, int(number)


def parse_minutes(text: str) -> int:
    """A time limit as Slurm writes it (`90`, `12:00:00`, `2-00:00:00`), in whole minutes.

    Raises:
        UsageError: another form, or less than a minute.
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text.strip()):
        raise UsageError(
            f"--time is written MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS, such as 12:00:00, found '{text}'."
        )
    days, dash, clock = text.strip().rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    # One or two numbers are MINUTES[:SECONDS], but after days HOURS[:MINUTES].
    if not dash and len(parts) < 3:
        parts.insert(0, 0)
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    seconds += 60 * minutes + 3600 * hours + 86400 * int(days or 0)
    if seconds < 60:
        raise UsageError(f"--time should be at least a minute, found '{text}'.")
    return -(-seconds // 60)


def parse_further_options(
    pairs: Sequence[str], *, gpus_per_node: int, exclusive: bool = False
) -> dict[str, str]:
    """Further options of sbatch from KEY=VALUE, or KEY where sbatch takes no value; of a key given twice the last.

    GPUs are also those that a variable of sbatch asks for where nothing else does. `exclusive` (whether --exclusive is given) and
    `gpus_per_node` are those of our own options that sbatch can be asked for in more ways.

    Raises:
        UsageError: an option that this package has a word of its own for, or none at all.
    """
    pieces = _split_pairs("--sbatch", pairs, "nodelist=n1")
    options = {key: value for key, _, value in pieces}
    own = dict(OWN_OPTIONS)
    if exclusive or options.get("exclusive") == "":  # with a value (user, say) it is another thing
        own["exclusive"] = "--exclusive"
    _refuse_own_options("--sbatch", options, own)
    if not gpus_per_node and not count_gpus(options):
        for option in GPU_OPTIONS:
            if given := os.environ.get(_list_variables(option)[0]):
                options.setdefault(option, given)
    return options


def parse_srun_options(pairs: Sequence[str]) -> tuple[str, ...]:
    """Further options of srun, as it takes them, from KEY=VALUE, or KEY where srun takes no value; of a key given twice the last.

    Raises:
        UsageError: an option that this package has a word of its own for, or none at all.
    """
    options = {key: sign + value for key, sign, value in _split_pairs("--srun", pairs, "mpi=none")}
    _refuse_own_options("--srun", options, OWN_SRUN_OPTIONS)
    return tuple(f"--{key}{value}" for key, value in options.items())


def _split_pairs(word: str, pairs: Sequence[str], example: str) -> Iterator[tuple[str, str, str]]:
    """Key as Slurm writes it, `=` or nothing, and value."""
    for pair in pairs:
        key, sign, value = pair.partition("=")
        key = key.strip().lstrip("-").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z-]+", key):
            raise UsageError(f"{word} takes KEY=VALUE, such as {word} {example}, found '{pair}'.")
        yield key, sign, value


def _refuse_own_options(word: str, given: Mapping[str, str], own: Mapping[str, str]) -> None:
    # All of them in one message, so that nobody corrects one after the other.
    taken = [
        f"{own[key]} in place of {word} {key}={given[key].removeprefix('=')}".rstrip("=")
        for key in own
        if key in given
    ]
    if taken:
        raise UsageError(f"Give {', and '.join(taken)}.")


def list_variables_against(options: Iterable[str]) -> set[str]:
    """The variables without which sbatch is called with these options: of another job, or against what stands in the script."""
    against = {name for option in (*options, *ALWAYS_OURS) for name in _list_variables(option)}
    if "SLURM_JOB_ID" in os.environ:
        against |= {name for name in os.environ if name.startswith(OF_A_JOB)} - {*OF_THE_SITE}
    return against


def _list_variables(option: str) -> tuple[str, ...]:
    return VARIABLES.get(option, (f"SBATCH_{option.upper().replace('-', '_')}",))

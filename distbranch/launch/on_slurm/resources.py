"""What is asked of Slurm for a run, as people write it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from distbranch.errors import UsageError
from distbranch.launch.on_slurm import gpus
from distbranch.launch.on_slurm.environment import gpu_options

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
        return gpus.gpus_per_node(self.gpus_per_node, self.further, nodes=self.nodes)


def minutes(text: str) -> int:
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
    if found["days"] is not None:
        seconds = 86400 * days + 3600 * first + 60 * second + third
    elif found["third"] is not None:
        seconds = 3600 * first + 60 * second + third
    else:
        seconds = 60 * first + second
    if seconds < 60:
        raise UsageError(f"--time should be at least a minute, found '{text}'.")
    return -(-seconds // 60)


def further_options(pairs: Sequence[str], *, gpus_per_node: int) -> dict[str, str]:
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
    taken = [f"{OWN_OPTIONS[key]} in place of --sbatch {key}={options[key]}" for key in OWN_OPTIONS if key in options]
    if taken:
        raise UsageError(f"Give {', and '.join(taken)}.")
    return options if gpus_per_node or gpus.are_asked_for(options) else {**gpu_options(), **options}

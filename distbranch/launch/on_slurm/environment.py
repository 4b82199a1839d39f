"""What a job may inherit of the shell that submits it: sbatch hands down all of it, and some of it changes the job.

In a job, Slurm's variables describe that job; a new one would take them for its own and bind its tasks to the wrong cores, or
refuse to start. And sbatch lets SBATCH_* variables of a user's profile win over what stands in the batch script.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from distbranch.launch.on_slurm import gpus

OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
OF_THE_SITE = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")
# Where the variables are not SBATCH_ and the option's name.
VARIABLES = {
    "time": ("SBATCH_TIMELIMIT",),
    "mem": ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
    "array": ("SBATCH_ARRAY_INX",),
    "requeue": ("SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"),
}
# What the batch script need not name to be against: GPUs that count are in it, and it waits for nobody.
ALWAYS_OURS = ("array", "error", "wait", *gpus.OPTIONS)


def gpu_options() -> dict[str, str]:
    """What variables of sbatch ask of GPUs, as the options that they stand for."""
    found = {option: os.environ.get(_variables(option)[0]) for option in gpus.OPTIONS}
    return {option: value for option, value in found.items() if value}


@contextmanager
def environment_for(options: Collection[str]) -> Iterator[None]:
    """The environment in which sbatch is called with these options: nothing of another job, and no variable against them."""
    before = dict(os.environ)
    against = {name for option in (*options, *ALWAYS_OURS) for name in _variables(option)}
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


def _variables(option: str) -> tuple[str, ...]:
    return VARIABLES.get(option, (f"SBATCH_{option.upper().replace('-', '_')}",))

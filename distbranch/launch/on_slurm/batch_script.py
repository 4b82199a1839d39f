"""The batch script of a job: the parameters from which submitit writes it, and what it does before its tasks begin."""

import math
import re
import shlex
from pathlib import Path
from typing import Any

from distbranch.config import Config, LaunchConfig
from distbranch.launch.on_slurm import gpus
from distbranch.launch.on_slurm.resources import Resources

# A task may use every core of its job on the node, also where they are not counted by --cpus-per-node (--exclusive, mincpus): a
# site may bind each task to one core. Its ranks share them out by threads.
ALL_CORES = "--cpu-bind=none"


def parameters(config: Config, resources: Resources, shared_folder: Path, *, at_once: int = 1) -> dict[str, Any]:
    """The parameters of submitit's AutoExecutor."""
    shared = {
        "name": resources.job_name or str(config.run.name),
        "timeout_min": resources.timeout_min,
        "nodes": resources.nodes,
        "tasks_per_node": 1,
        "cpus_per_task": resources.cpus_per_node,
        "gpus_per_node": None if gpus.are_asked_for(resources.further) else resources.gpus_per_node or None,
        "stderr_to_stdout": True,
    }
    if resources.executor == "local":
        return shared
    further: dict[str, Any] = {"requeue": True, **_least_cpus(config.launch, resources)}
    further |= {key.replace("-", "_"): value for key, value in resources.further.items()}  # submitit's form of them
    if resources.memory is not None:
        further["mem"] = resources.memory
    slurm = {
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclusive": resources.exclusive or None,
        "signal_delay_s": resources.signal_delay_s,
        "wckey": "",
        "array_parallelism": at_once,
        "setup": _setup(shared_folder),
        "srun_args": [ALL_CORES],
        "additional_parameters": further,
    }
    return shared | {f"slurm_{key}": value for key, value in slurm.items() if value is not None}


def options_in(script: str) -> list[str]:
    """The options of sbatch that stand in a batch script, without dashes in front."""
    return re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE)


def _least_cpus(launch: LaunchConfig, resources: Resources) -> dict[str, int]:
    """Without --cpus-per-node Slurm may give a node one core: no fewer than the ranks on it need, and more if the site says so."""
    needed = math.ceil(-(-launch.most_workers // resources.nodes) * launch.cpus_per_worker)
    return {"mincpus": needed} if resources.cpus_per_node is None and needed > 1 else {}


def _setup(shared_folder: Path) -> list[str]:
    """Commands of the batch script before its tasks begin: every node must see what the first one writes now."""
    # From 22.05 on srun does not read how many cores its job has for a task; and it exports no more than sbatch --export allows.
    inherit = [
        '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
        "unset SLURM_EXPORT_ENV",
    ]
    marker = f"{shlex.quote(str(shared_folder))}/.seen-$SLURM_JOB_ID"
    advice = (
        f"does not see {shared_folder} as the first node does. Give a run.directory on storage that all nodes share."
    )
    look = f'test -e "$0" || {{ echo "Error: the node $SLURMD_NODENAME {advice}"; exit 1; }}'
    return [
        *inherit,
        f'marker={marker}; touch "$marker"',
        f'srun --ntasks-per-node=1 --kill-on-bad-exit=0 sh -c {shlex.quote(look)} "$marker" || {{ rm -f "$marker"; exit 1; }}',
        'rm -f "$marker"',
    ]

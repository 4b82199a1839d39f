"""What `distbranch submit slurm` and `submit slurm-array` both ask of Slurm; their words are those of sbatch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

if TYPE_CHECKING:
    from distbranch.launch.on_slurm.containers import Kind
    from distbranch.launch.on_slurm.resources import Resources

Partition = Annotated[str | None, Option(help="Partition; the site's default if empty.")]
Gpus = Annotated[
    str,
    Option(
        "--gpus-per-node",
        metavar="[TYPE:]NUMBER",
        help="GPUs of each node, such as 2, a100:2 or 1g.10gb:2; one rank on each.",
    ),
]
Cpus = Annotated[
    int | None,
    Option(
        "--cpus-per-node",
        help="Cores of each node; if empty one for each of its ranks, or more.",
        min=1,
    ),
]
Time = Annotated[
    str, Option("--time", metavar="TIME", help="Time limit: MINUTES, 12:00:00 or 2-00:00:00.")
]
Account = Annotated[str | None, Option(help="Account to charge.")]
Qos = Annotated[str | None, Option(help="Quality of service.")]
Constraint = Annotated[str | None, Option(help="Features that nodes must have.")]
Memory = Annotated[str | None, Option("--mem", help="Memory of each node, such as 64G.")]
Exclusive = Annotated[
    bool, Option("--exclusive/--no-exclusive", help="Share the nodes with no other job.")
]
JobName = Annotated[str | None, Option(help="Name in the queue; the run's if empty.")]
SignalDelay = Annotated[
    int, Option(help="Seconds before the time limit at which the run saves itself.", min=30)
]
Further = Annotated[
    list[str] | None,
    Option("--sbatch", metavar="KEY[=VALUE]", help="Another option of sbatch; may be given again."),
]
Setup = Annotated[
    list[str] | None,
    Option(
        metavar="LINE",
        help="A line of shell before the tasks, such as 'module load cuda'; may be given again.",
    ),
]
Srun = Annotated[
    list[str] | None,
    Option("--srun", metavar="KEY[=VALUE]", help="Another option of srun; may be given again."),
]
Image = Annotated[
    str | None,
    Option(
        "--container",
        metavar="IMAGE",
        help="The image in which the job runs, which has this package; empty for none.",
    ),
]
ImageKind = Annotated[
    Literal["apptainer", "singularity", "pyxis"], Option("--container-kind", help="What starts it.")
]
Mounts = Annotated[
    list[str] | None,
    Option(
        metavar="OUTSIDE[:INSIDE]",
        help="Further folders that the container sees, separated by commas; those of the run and its data are seen anyway.",
    ),
]


def make_resources(
    *,
    time: str,
    sbatch: Sequence[str] | None,
    srun: Sequence[str] | None,
    container: "tuple[str | None, Kind, Sequence[str]]",
    gpus_per_node: int,
    exclusive: bool = False,
    **others: Any,
) -> "Resources":
    """What is asked of Slurm, from the options that are texts to be read and from `others`, which stay as they are.

    Raises:
        UsageError: a text that cannot be read, or an option of sbatch or srun that has a word of its own.
    """
    from distbranch.launch.on_slurm.containers import parse_container
    from distbranch.launch.on_slurm.resources import (
        Resources,
        parse_further_options,
        parse_minutes,
        parse_srun_options,
    )

    further = parse_further_options(sbatch or (), gpus_per_node=gpus_per_node, exclusive=exclusive)
    return Resources(
        timeout_min=parse_minutes(time),
        gpus_per_node=gpus_per_node,
        exclusive=exclusive,
        further=further,
        srun=parse_srun_options(srun or ()),
        container=parse_container(*container),
        **others,
    )

"""Containers of a job of Slurm: what runs inside one, and how it reaches what is outside.

sbatch, srun and scontrol run outside, as the site has them. Inside run each node's task, its Ray and the training, so that an image
needs this package and nothing of Slurm. A task that wants to queue its job again, or to know whether it is preempted, finds a
`scontrol` that is ours: it puts the question into a folder, and the batch script, which is outside, asks Slurm.
"""

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distbranch.config.paths import expand_places, is_remote
from distbranch.errors import UsageError

Kind = Literal["apptainer", "singularity", "pyxis"]
RELAY = "DISTBRANCH_RELAY"  # the environment variable that names the folder of questions
MISSING = "Error: the image of --container has no {}: it needs this package (cluster/Dockerfile makes such an image)."
# Holds signals back as `hold_signals` does, which lies outside, and says in one sentence what the image lacks. What follows in the
# batch script is the Python of outside with its options, of which those from -u on are of the task.
BEGIN_INSIDE = (
    "import os, signal, sys; from importlib.util import find_spec; "
    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2}); "
    'lacks = [name for name in ("distbranch", "submitit") if find_spec(name) is None]; '
    f'lacks and sys.exit("{MISSING}".format(lacks[0])); '
    'os.execv(sys.executable, [sys.executable, *sys.argv[sys.argv.index("-u"):]])'
)
# Neither side ends at SIGTERM, which is sent to a job that is cancelled or queued again while it asks. Only task 0 asks, and it runs
# on the node of the batch script. A listing is fresh where a look at one file may be remembered (NFS).
RELAY_OF_BATCH_SCRIPT = f"""\
trap "" TERM
rm -rf "${RELAY}"
(umask 077; mkdir -p "${RELAY}"; cat > "${RELAY}/scontrol"; chmod 700 "${RELAY}/scontrol") <<'END'
#!/bin/sh
trap "" TERM
name=$1-$$
: > "${RELAY}/$name.ask"
until ls "${RELAY}" | grep -qx "$name.done"; do sleep 0.3; done
code=$(cat "${RELAY}/$name.done")
if [ "$code" = 0 ]; then cat "${RELAY}/$name.said"; else cat "${RELAY}/$name.said" >&2; fi
exit "$code"
END
while sleep 1; do
  for asked in $(ls "${RELAY}" | grep '[.]ask$'); do
    name="${RELAY}/${{asked%.ask}}"; rm "$name.ask"
    case $asked in
      requeue-*) scontrol requeue "$SLURM_JOB_ID" ;;
      show-*) scontrol show job -o "$SLURM_JOB_ID" ;;
      *) echo "only requeue and show are answered"; false ;;
    esac > "$name.said" 2>&1
    echo $? > "$name.code"; mv "$name.code" "$name.done"
  done
done &
relay=$!; disown; trap 'kill -9 $relay; rm -rf "${RELAY}"' EXIT"""


@dataclass(frozen=True)
class Container:
    """An image and what starts it.

    `mounts`: folders of the node that are seen inside too, as `OUTSIDE:INSIDE[:ro]`; `folders`: those of the run, under their own paths.
    """

    image: str
    kind: Kind = "apptainer"
    mounts: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()


def parse_container(image: str | None, kind: Kind, mounts: Sequence[str]) -> Container | None:
    """The container that the options of a command describe; None without an image, for then all is seen as it is.

    Args:
        image: a file, a folder, or a name in a registry as `kind` writes it.
        kind: what starts it.
        mounts: `OUTSIDE[:INSIDE[:ro]]`, or several of them separated by commas.

    Raises:
        UsageError: mounts that are no absolute paths, or an image that is not there.
    """
    if not image:  # empty: against that of a site's file
        return None
    parts = [part.strip() for text in mounts for part in text.split(",") if part.strip()]
    found = tuple(_parse_mount(part) for part in parts)
    image = str(expand_places(image))
    if _is_file(image):
        image = os.path.abspath(image)
        if not os.path.exists(image):
            raise UsageError(
                f"The image {image} of --container does not exist. Give a file that all nodes see, or a name such as "
                f"{EXAMPLES[kind]}."
            )
    return Container(image, kind, found)


EXAMPLES = {
    "apptainer": "docker://REGISTRY/distbranch:1",
    "singularity": "docker://REGISTRY/distbranch:1",
    "pyxis": "REGISTRY#distbranch:1",
}


def _is_file(image: str) -> bool:
    """Whether an image is a file or a folder, and no name in a registry (docker://..., REGISTRY#NAME)."""
    looks_so = image.startswith(("/", "./", "../")) or image.endswith((".sif", ".sqsh"))
    return not is_remote(image) and (looks_so or os.path.exists(image))


def _parse_mount(text: str) -> str:
    """`OUTSIDE:INSIDE[:ro]` of what was given."""
    outside, _, rest = str(expand_places(text)).partition(":")
    inside, _, flags = (rest or outside).partition(":")
    if not re.fullmatch(r"/[^,\s]*", outside) or not re.fullmatch(r"/[^,\s]*", inside):
        raise UsageError(
            f"--mounts are absolute paths without blanks, /PATH or /OUTSIDE:/INSIDE or /OUTSIDE:/INSIDE:ro, found '{text}'."
        )
    return ":".join(filter(None, (outside, inside, flags)))


def list_container_words(container: Container, shared_folder: Path, *, num_gpus: int) -> list[str]:
    """What srun is told, before the command of the task, so that this runs inside.

    Args:
        container: see above.
        shared_folder: in which the job keeps its files; mounted too, and so is the current folder.
        num_gpus: of each node.
    """
    own = [*container.folders, shared_folder, Path.cwd()]
    mounts = ",".join([*container.mounts, *_mount_same(own, container.mounts)])
    python = ["python3", "-c", BEGIN_INSIDE]
    if container.kind == "pyxis":
        options = [f"--container-image={container.image}", f"--container-mounts={mounts}"]
        return [*options, f"--container-workdir={Path.cwd()}", *python]
    start = [container.kind, "exec", "--bind", mounts, "--pwd", str(Path.cwd())]
    if num_gpus:
        start.append("--nv")  # the driver of the node
    return [*start, container.image, *python]


def _mount_same(folders: Iterable[Path], given: Sequence[str]) -> list[str]:
    """Mounts of folders under their own paths, without those that lie in another one or are mounted already.

    Raises:
        UsageError: a path that cannot be written as a mount.
    """
    taken = [Path(mount.split(":")[1]) for mount in given]
    found: list[str] = []
    # Never the root: the image has its own.
    for folder in sorted({one for one in folders if one != Path(one.anchor)}):
        if not any(folder.is_relative_to(one) for one in taken):
            if {",", ":"} & {*str(folder)}:
                raise UsageError(
                    f"A folder that a container is to see should have no comma and no colon in its path, found {folder}. Give another "
                    "one, or mount a folder above it under --mounts."
                )
            taken.append(folder)
            found.append(f"{folder}:{folder}")
    return found


def make_container_setup(container: Container, shared_folder: Path) -> list[str]:
    """Lines of the batch script, after those of the site and before the tasks: what starts the container is there, and the relay."""
    name = f'{shlex.quote(str(shared_folder))}/relay-"$SLURM_JOB_ID"'
    lines = [f"export {RELAY}={name}", RELAY_OF_BATCH_SCRIPT]
    if container.kind == "pyxis":
        look = "srun --help 2>/dev/null | grep -q -e --container-image"
        advice = "srun has no --container-image here, so Pyxis is not installed: use --container-kind apptainer"
    else:
        look = f"command -v {container.kind} > /dev/null"
        advice = f'{container.kind} is not on PATH here: load it with --setup \\"module load {container.kind}\\"'
    advice += ", or ask the administrator"
    return [f'{look} || {{ echo "Error: on $SLURMD_NODENAME {advice}."; exit 1; }}', *lines]


def use_scontrol_of_batch_script() -> None:
    """Inside a container, where Slurm's own command is not, let `scontrol` be the one that asks the batch script."""
    relay = os.environ.get(RELAY)
    if relay and shutil.which("scontrol") is None:
        os.environ["PATH"] = os.pathsep.join([relay, os.environ.get("PATH", os.defpath)])

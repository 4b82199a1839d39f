"""What a site brings, on a real Slurm: its file of defaults, lines of setup, a container, and the check of the network.

The container is a stand-in for Apptainer: a root of its own in which Slurm's commands are not, and of the machine's folders those
alone that are mounted.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from slurm_person import Person, saved_step, stopped_at
from slurm_world import SlurmWorld
from tiny_runs import assert_same_content

pytestmark = pytest.mark.cluster
CHECKOUT = Path(__file__).resolve().parents[3]
# The "image" holds the system, this Python and this package.
CONTENT = dict.fromkeys(
    ["/usr", "/etc", "/proc", "/dev", "/sys", sys.base_prefix, sys.prefix, str(CHECKOUT)]
)
APPTAINER = f"""#!/bin/bash
[ "$1 $2 $4" = "exec --bind --pwd" ] || exit 98
export MOUNTS=$3 FOLDER=$5 IMAGE=$6 PATH={Path(sys.executable).parent}:/usr/bin:/usr/sbin
shift 6
exec unshare --mount --propagation private bash -c '
  mount -t tmpfs none "$IMAGE" && cd "$IMAGE" && ln -s usr/bin usr/sbin usr/lib usr/lib64 . && mkdir tmp
  show() {{ mkdir -p ".$2"; mount --rbind "$1" ".$2"; }}
  for folder in {" ".join(CONTENT)}; do [ -e ".$folder" ] && [ -n "$(ls -A ".$folder")" ] || show "$folder" "$folder"; done
  for mount in ${{MOUNTS//,/ }}; do show "${{mount%%:*}}" "${{mount#*:}}"; done
  for command in scontrol squeue sinfo srun sbatch; do mount --bind /dev/null usr/bin/$command; done
  chroot . sh -c "command -v scontrol" && exit 99
  exec chroot . sh -c '\\''cd "$0" && exec "$@"'\\'' "$FOLDER" "$@"' apptainer "$@"
"""


def write_apptainer(folder: Path) -> None:
    folder.mkdir()
    file = folder / "apptainer"
    file.write_text(APPTAINER)
    file.chmod(0o755)


def test_a_run_of_the_site_file_in_a_container_is_queued_again_and_ends_with_the_same_bits(
    person: Person, slurm: SlurmWorld, undisturbed: Callable[[int], Path]
) -> None:
    write_apptainer(person.folder / "module")
    image = person.folder / "image"
    image.mkdir()
    site = {
        "partition": "main",
        "time": "20",
        "cpus_per_node": 1,
        "setup": [f"export PATH={person.folder}/module:$PATH"],
        "sbatch": "nodelist=n1",
        "container": str(image),
    }
    file = person.folder / "site.yaml"
    file.write_text(yaml.safe_dump({"slurm": site}))
    job = person.submits("tiny.yaml", DISTBRANCH_SITE=str(file))
    person.waits_for_step(8)
    assert slurm.job(job)["Partition"] == "main"

    # What Slurm sends before a time limit; the task inside knows no scontrol but that of the batch script.
    slurm.run("scancel", "--signal=USR2", job)
    slurm.wait_for(lambda: slurm.job(job)["Restarts"] == "1", "the requeue", timeout_s=200)
    assert "Traceback" not in person.log("tiny")
    assert stopped_at(person.log("tiny")) == [saved_step(person.run_of("tiny"))]
    person.waits_for_step(12, resumed=1)
    person.hurries_until(1000)
    assert person.waits_for_end(job) == "COMPLETED", person.log("tiny")
    assert_same_content(person.run_of("tiny"), undisturbed(1))
    assert not list(person.run_of("tiny").glob("slurm/relay*"))


def test_a_line_of_setup_that_fails_on_the_node_ends_its_job_and_the_log_says_which(
    person: Person, slurm: SlurmWorld
) -> None:
    job = person.submits("tiny.yaml", "--partition", "main", "--setup", "module load nosuch")
    assert person.waits_for_end(job) == "FAILED"
    [told] = person.log("tiny").strip().splitlines()[-1:]
    assert told.startswith("Error: on n")
    assert told.endswith("this line of --setup failed with exit code 127: module load nosuch")


def test_the_ranks_of_srun_measure_the_network_of_their_nodes(slurm: SlurmWorld) -> None:
    doctor = (sys.executable, "-m", "distbranch", "doctor", "--ranks")
    srun = ("srun", "--partition", "main", "--nodes", "2", "--ntasks-per-node", "1", "--mem", "2G")
    told = slurm.run(*srun, *doctor, "2", timeout_s=400)
    assert "2 ranks on 1 host(s), cpu, gloo" in told  # both nodes are this machine
    assert "matrix product, slowest host" in told
    assert told.count("sum of 64 MiB") == 1

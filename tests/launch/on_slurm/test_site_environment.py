"""What a site needs around a job: lines of setup, options of srun, GPUs with a type, containers; the batch script is run by bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import config_of

from distbranch.config import load_config
from distbranch.engine.process_group import count_mig_parts, uses_nccl
from distbranch.errors import UsageError
from distbranch.launch.on_slurm.containers import BEGIN_INSIDE, Container, parse_container
from distbranch.launch.on_slurm.resources import Resources, parse_gpus, parse_srun_options
from distbranch.launch.on_slurm.submission import _make_parameters, render_batch_script

JOB = "SLURM_JOB_ID"


def script_of(folder: Path, resources: Resources) -> str:
    values = {"launch.device": "auto", "launch.workers": max(1, resources.num_gpus)}
    return render_batch_script(
        load_config(config_of("s3://nowhere/data", folder / "runs", **values)), resources
    )


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("2", (None, 2)),
        ("0", (None, 0)),
        ("a100:2", ("a100", 2)),
        ("1g.10gb:3", ("1g.10gb", 3)),
        ("nvidia_h100_80gb_hbm3:8", ("nvidia_h100_80gb_hbm3", 8)),
    ],
)
def test_gpus_are_asked_for_with_the_name_that_the_site_gives_them(
    text: str, asked: tuple[str | None, int], tmp_path: Path
) -> None:
    kind, number = parse_gpus(text)
    assert (kind, number) == asked
    script = script_of(tmp_path, Resources(gpus_per_node=number, gpu_type=kind))
    assert (f"#SBATCH --gpus-per-node={text}\n" in script) is (number > 0)


@pytest.mark.parametrize("text", ["a100", "-1", "a100:", "two", "a100:2:3", "gpu a:2"])
def test_what_is_no_number_of_gpus_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"written NUMBER or TYPE:NUMBER, such as 2, a100:2"):
        parse_gpus(text)


def test_parts_of_gpus_are_counted_and_talk_without_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = load_config(config_of("s3://nowhere/data", "/nowhere")).launch
    for given, parts in (("MIG-1c2d,MIG-9f3a", 2), ("0,1", 0), ("GPU-55", 0), ("", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert count_mig_parts() == parts
        assert uses_nccl(launch) is (parts == 0)


def test_options_of_srun_come_after_ours_and_those_with_a_word_of_their_own_are_named_all_at_once(
    tmp_path: Path,
) -> None:
    options = parse_srun_options(["mpi=none", "--cpu_bind=cores", "overlap", "mpi=pmix"])
    assert options == ("--mpi=pmix", "--cpu-bind=cores", "--overlap")
    script = script_of(tmp_path, Resources(srun=options))
    assert " --cpu-bind=none --mpi=pmix --cpu-bind=cores --overlap " in script
    with pytest.raises(UsageError) as told:
        parse_srun_options(["container-image=x", "nodes=2", "gpus_per_node=1", "mem=4G"])
    assert str(told.value) == (
        "Give --mem in place of --srun mem=4G, and --nodes in place of --srun nodes=2, and --gpus-per-node in place of --srun "
        "gpus-per-node=1, and --container in place of --srun container-image=x."
    )
    with pytest.raises(UsageError, match="--srun takes KEY=VALUE"):
        parse_srun_options(["=3"])


class Login:
    """A machine with a folder of commands that stand for Slurm's and a container's; it runs batch scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder, folder / "bin"
        self.commands.mkdir()
        (folder / "runs" / "tiny" / "slurm").mkdir(parents=True)
        self.has("srun", f'echo "srun: $*" >> {folder}/called; echo "seen: $SITE"')
        self.has("scontrol", f'echo "scontrol $*" >> {folder}/called; echo JobState=RUNNING')

    def has(self, command: str, text: str) -> None:
        file = self.commands / command
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)

    def runs(self, script: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.commands), "/usr/bin", "/bin"])
        given = {"PATH": path, JOB: "7", "SLURMD_NODENAME": "n1"}
        return subprocess.run(
            ["bash", "-c", script],
            env=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def called(self) -> str:
        file = self.folder / "called"
        return file.read_text() if file.exists() else ""


@pytest.fixture
def login(tmp_path: Path) -> Login:
    return Login(tmp_path)


def test_lines_of_setup_reach_the_tasks_and_one_that_fails_ends_the_job_with_one_sentence(
    login: Login,
) -> None:
    lines = ["export SITE='a \"b\"'", 'module() { SITE+=" $2"; }', "module load cuda; true"]
    ended = login.runs(script_of(login.folder, Resources(setup=lines)))
    assert ended.returncode == 0, ended.stderr
    assert 'seen: a "b" cuda' in ended.stdout
    assert "submitit" in login.called()

    (login.folder / "called").unlink()
    for line in ("(exit 3)", "echo 'open"):
        ended = login.runs(script_of(login.folder, Resources(setup=[line, "echo later"])))
        assert ended.returncode == 1
        [told] = ended.stdout.splitlines()
        assert told.startswith("Error: on n1 this line of --setup failed with exit code ")
        assert told.endswith(f": {line}")
        assert not login.called()


def test_no_shell_reads_what_the_name_of_a_folder_has_of_quotes_and_dollars(login: Login) -> None:
    """Neither where all nodes see it, nor in the sentence of one that does not."""
    folder = login.folder / "a\"b'c $(touch read) `touch read`"
    script = script_of(folder, Resources())
    (folder / "runs" / "tiny").mkdir(parents=True)
    login.has("srun", 'while [ "${1:-sh}" != sh ]; do shift; done; exec "$@"')
    assert login.runs(script).returncode == 0

    login.has("touch", "[[ $1 = */.seen-7 ]] || /usr/bin/touch read")
    ended = login.runs(script)
    assert ended.returncode == 1
    assert f"the node n1 does not see {folder}/runs/tiny as the first node does" in ended.stdout
    assert not Path("read").exists()


def test_a_container_sees_the_data_of_every_trial_of_an_array(tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        runs.append(load_config(config_of(tmp_path / name, tmp_path / "runs")))
    container = Container("docker://x/y")
    found = _make_parameters(runs, Resources(container=container), tmp_path / "runs", at_once=2)
    mounts = found["srun_args"][found["srun_args"].index("--bind") + 1]
    assert {f"{tmp_path / name}:{tmp_path / name}" for name in ("one", "two")} <= {
        *mounts.split(",")
    }
    for name in ("a,b", "a:b"):
        with pytest.raises(UsageError, match="no comma and no colon"):
            script_of(tmp_path / name, Resources(container=container))


def test_a_container_sees_the_folders_of_the_run_and_gets_the_driver_only_with_gpus(
    tmp_path: Path,
) -> None:
    image = tmp_path / "image.sif"
    image.touch()
    container = parse_container(str(image), "apptainer", ["/opt/a,/opt/b:/b:ro"])
    assert container == Container(str(image), "apptainer", ("/opt/a:/opt/a", "/opt/b:/b:ro"))
    here, runs = Path.cwd(), tmp_path / "runs"
    binds = ",".join(
        ["/opt/a:/opt/a", "/opt/b:/b:ro", *sorted(f"{one}:{one}" for one in (here, runs))]
    )
    plain = script_of(tmp_path, Resources(container=container))
    assert f" apptainer exec --bind {binds} --pwd {here} {image} python3 -c " in plain
    assert f" --nv {image} python3 " in script_of(
        tmp_path, Resources(container=container, gpus_per_node=1)
    )

    squashed = parse_container("nvcr.io#nvidia/pytorch:24.01-py3", "pyxis", [str(tmp_path)])
    pyxis = script_of(tmp_path, Resources(container=squashed, gpus_per_node=1))
    binds = f"{tmp_path}:{tmp_path},{here}:{here}"  # the run lies in what is mounted already
    assert (
        f"--cpu-bind=none '--container-image=nvcr.io#nvidia/pytorch:24.01-py3' --container-mounts={binds} "
        f"--container-workdir={here} python3 -c "
    ) in pyxis
    assert "apptainer" not in pyxis.partition("srun --unbuffered")[2]


def test_an_image_that_is_not_there_and_mounts_that_are_no_paths_are_refused() -> None:
    assert parse_container(None, "apptainer", ["/opt"]) is None
    assert parse_container("", "pyxis", []) is None
    with pytest.raises(UsageError, match=r"image /nowhere/a.sif of --container does not exist"):
        parse_container("/nowhere/a.sif", "apptainer", [])
    for mount in ("opt", "/a:b", "/a b"):
        with pytest.raises(UsageError, match=f"absolute paths without blanks.* found '{mount}'"):
            parse_container("docker://x/y", "apptainer", [mount])


def test_a_site_without_the_program_of_containers_is_told_in_one_sentence(login: Login) -> None:
    for kind, told in (
        ("singularity", "on n1 singularity is not on PATH here: load it with --setup"),
        ("pyxis", "on n1 srun has no --container-image here, so Pyxis is not installed"),
    ):
        ended = login.runs(script_of(login.folder, Resources(container=Container("x", kind))))  # type: ignore[arg-type]
        assert ended.returncode == 1
        assert f"Error: {told}" in ended.stdout.splitlines()[-1]


ASKS = """
from distbranch.launch.on_slurm.containers import use_scontrol_of_batch_script
from distbranch.launch.on_slurm.queue import call_slurm, read_job_details
use_scontrol_of_batch_script()
print("state", read_job_details("7")["JobState"])
print(call_slurm("scontrol", "requeue", "7"))
"""


def test_a_task_in_a_container_asks_slurm_through_the_batch_script(login: Login) -> None:
    """The container of this test is a PATH in which Slurm's commands are not."""
    inside = login.folder / "inside"
    inside.mkdir()
    for program in ("sh", "ls", "grep", "cat", "sleep"):
        (inside / program).symlink_to(str(shutil.which(program)))
    source = Path(__file__).resolve().parents[3]
    (login.folder / "asks.py").write_text(ASKS)
    run = f"exec env PATH={inside} PYTHONPATH={source} {sys.executable} {login.folder}/asks.py"
    login.has("apptainer", run)
    login.has("srun", 'while [ $# -gt 0 ] && [ "$1" != apptainer ]; do shift; done; "$@"')
    ended = login.runs(script_of(login.folder, Resources(container=Container("x"))))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["state", "RUNNING", "JobState=RUNNING"]
    assert login.called().splitlines() == ["scontrol show job -o 7", "scontrol requeue 7"]
    assert not list(login.folder.glob("runs/tiny/slurm/relay*"))


def test_python_in_a_container_runs_the_words_of_the_task_with_signals_held_back() -> None:
    shown = (
        "import signal, sys; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), sys.argv)"
    )
    words = ["/outside/python", "-I", "-S", "hold.py", "-u", "-c", shown, "folder"]
    ended = subprocess.run(
        [sys.executable, "-c", BEGIN_INSIDE, *words], capture_output=True, text=True, check=True
    )
    assert "SIGUSR2" in ended.stdout
    assert "SIGTERM" in ended.stdout
    assert ended.stdout.endswith("['-c', 'folder']\n")

    bare = [sys.executable, "-I", "-S", "-c", BEGIN_INSIDE, *words]
    ended = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: the image of --container has no distbranch: it needs")

"""Any command as a job: what may stand after `--`, what is checked before it is submitted, and what is submitted."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_world import Ended, assert_one_sentence, nothing_overwritten, run_command

from distbranch.config import LaunchConfig, load_config
from distbranch.engine.run_start import begin_run
from distbranch.errors import UserError
from distbranch.launch import job_command, jobs
from distbranch.launch.job_command import JobCommand
from distbranch.launch.jobs import Job, read_job, write_job
from distbranch.launch.on_ray import command_jobs as ray_jobs
from distbranch.launch.on_ray.job import write_expanded
from distbranch.launch.on_slurm import command_jobs as slurm_jobs
from distbranch.launch.on_slurm import submission
from distbranch.launch.on_slurm.local_job import read_exit_code, write_exit_code
from distbranch.launch.on_slurm.node import Place
from distbranch.launch.on_slurm.task import Task
from distbranch.launch.prepare import with_absolute_paths
from distbranch.launch.stopping import EXIT_PREEMPTED

SWEEP = "base: tiny.yaml\nseeds: [0, 1]\n"
SLURM, RAY = "submit slurm --dry-run", "submit ray --dry-run"
SHARED = "directory=/shared/runs data.path=/shared/data"
REFUSED = {
    "submit slurm": (2, ("config file of a run", "train, sweep, experiment, evaluate")),
    "submit slurm trian": (2, ("config file of a run", "train, sweep", "found 'trian'")),
    "submit slurm absent.yaml": (2, ("absent.yaml", "does not exist", "tiny.yaml")),
    "submit slurm -- serve": (2, ("`serve` makes no job", "train, sweep, experiment, evaluate")),
    "submit ray -- submit slurm tiny.yaml": (2, ("`submit` makes no job",)),
    "submit slurm -- experiment tabel tiny.yaml": (2, ("experiment table, experiment company",)),
    "submit slurm -- evaluate runs/tiny --splat": (2, ("No such option: --splat",)),
    "submit slurm -- evaluate": (2, ("Missing argument",)),
    "submit slurm -- sweep s.yaml --dry-run": (2, ("give --dry-run before --",)),
    f"{SLURM} -- sweep s.yaml grid.method.alpa=[1]": (2, ("method.alpa", "method.alpha")),
    f"{SLURM} -- sweep s.yaml data.path=absent": (1, ("absent", "does not exist")),
    f"{SLURM} -- sweep s.yaml launch.address=HEAD:6379": (2, ("leave launch.address out",)),
    f"{SLURM} --gpus-per-node 1 -- sweep s.yaml": (2, ("give gpus_per_trial", "be idle")),
    f"{SLURM} -- sweep s.yaml gpus_per_trial=1": (2, ("need --gpus-per-node",)),
    f"{SLURM} --cpus-per-node 2 -- sweep s.yaml cpus_per_trial=4": (
        2,
        ("1 worker(s), of which 0",),
    ),
    f"{SLURM} --nodes 2 -- evaluate runs/tiny": (2, ("one node, found --nodes 2",)),
    f"{SLURM} -- evaluate runs/absent": (1, ("run directory", "config.yaml", "runs/absent")),
    f"{SLURM} -- evaluate s3://bucket/run": (2, ("storage that all nodes share", "s3://bucket")),
    f"{SLURM} -- predict tiny.onnx photo.jpg": (2, ("directory of a run", "tiny.onnx")),
    f"{SLURM} --time 2 --signal-delay 600 -- sweep s.yaml": (2, ("--signal-delay 600",)),
    f"{RAY} -- sweep s.yaml": (2, ("found directory=runs, data.path=data, which would lie",)),
    f"{RAY} -- experiment table tiny.yaml": (2, ("found run.directory=runs, data.path=data",)),
    f"{RAY} -- evaluate runs/tiny --out x.csv": (2, ("found run=runs/tiny, --out=x.csv",)),
    f"{RAY} -- doctor": (2, ("found --storage=runs, which would lie",)),
    f"{RAY} -- sweep ../s.yaml {SHARED}": (2, ("s.yaml lies outside",)),
}


@pytest.fixture
def sweep_file(world: Path) -> Path:
    """A sweep in the tiny world, and another one outside the folder."""
    (world / "s.yaml").write_text(SWEEP)
    (world.parent / "s.yaml").write_text(SWEEP.replace("tiny.yaml", f"{world}/tiny.yaml"))
    return world / "s.yaml"


def run(command: str) -> Ended:
    return run_command(shlex.split(command))


@pytest.mark.usefixtures("sweep_file")
def test_what_cannot_be_a_job_is_refused_in_one_sentence_before_anything_is_written(
    world: Path,
) -> None:
    for command, (code, words) in REFUSED.items():
        with nothing_overwritten(world, ()):
            assert_one_sentence(run(command), code, words)


def options_of(command: str) -> dict[str, str]:
    """The options of sbatch in the batch script of a dry run."""
    ended = run(command)
    assert ended.code == 0, ended.err
    return dict(re.findall("#SBATCH --([a-z-]+)=?(.*)", ended.out))


def test_a_sweep_asks_for_what_a_trial_needs_on_every_node(sweep_file: Path) -> None:
    world = sweep_file.parent
    with nothing_overwritten(world, ()):
        asked = options_of(
            f"{SLURM} --nodes 2 -- sweep s.yaml workers_per_trial=3 cpus_per_trial=6"
        )
        of_one = options_of(f"{SLURM} -- experiment table tiny.yaml --seeds 0,1 --name mine")
    assert asked["mincpus"] == "4"
    assert asked["job-name"] == "sweep-s"
    assert asked["output"].startswith(f"{world}/runs/s/slurm/")
    assert "requeue" in asked
    assert "mincpus" not in of_one
    assert of_one["output"].startswith(f"{world}/runs/mine/slurm/")
    given = options_of(f"{SLURM} --cpus-per-node 8 --job-name x -- sweep s.yaml cpus_per_trial=2")
    assert (given["cpus-per-task"], given["job-name"]) == ("8", "x")


@pytest.mark.usefixtures("world")
def test_the_short_form_is_train_after_the_dashes_and_fresh_chooses_its_name_at_once() -> None:
    short = run(f"{SLURM} tiny.yaml run.name=new --nodes 1").out
    assert run(f"{SLURM} -- train tiny.yaml run.name=new").out == short
    assert options_of(f"{SLURM} -- train tiny.yaml --fresh")["job-name"] == "tiny-2"


def test_a_job_of_ray_runs_the_words_with_the_files_as_they_are_called_in_the_copy(
    sweep_file: Path,
) -> None:
    ended = run(f"{RAY} --address http://head:8265 -- sweep {sweep_file} --jobs 2 {SHARED}")
    assert ended.code == 0, ended.err
    assert f"python -m distbranch sweep s.yaml --jobs 2 {SHARED}\n" in ended.out
    assert "It works on /shared/runs/s." in ended.out
    ended = run(f"{RAY} -- predict s3://bucket/run photo.jpg --out /shared/scores.csv")
    assert "python -m distbranch predict s3://bucket/run photo.jpg" in ended.out
    ended = run(f"{RAY} -- train tiny.yaml run.{SHARED}")
    assert f"python -m distbranch train tiny.yaml run.{SHARED}\n" in ended.out
    # The cluster has the package, and may have another home.
    ended = run(f"{RAY} quickstart run.{SHARED}")
    assert f"python -m distbranch train quickstart run.{SHARED}\n" in ended.out
    home = Path.home()
    for words in ("train tiny.yaml run.", f"sweep {sweep_file} "):
        ended = run(f"{RAY} -- {words}directory=~/runs data.path=$HOME/data")
        key = "run.directory" if "train" in words else "directory"
        assert f" {key}={home}/runs data.path={home}/data\n" in ended.out


def test_a_folder_with_blanks_quotes_and_a_dollar_is_what_it_is_for_every_job(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world / "a $b 'c'"
    folder.mkdir()
    config = yaml.safe_load(Path("tiny.yaml").read_text())
    config["data"]["path"] = str(world / "data")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(folder)
    runs = folder / "runs"

    # What Slurm and Ray are told. Their shells read the words back.
    script = run(f"{SLURM} tiny.yaml").out
    assert f"#SBATCH --output={shlex.quote(str(runs / 'tiny/slurm/%j_0_log.out'))}\n" in script
    assert shlex.split(script.splitlines()[-2])[-1] == str(runs / "tiny" / "slurm")
    places = shlex.join(["data.path=/data", f"run.directory={runs}"])
    said = run(f"{RAY} --address http://head:8265 tiny.yaml {places}").out
    words = shlex.split(said.splitlines()[1])
    assert load_config(Path("tiny.yaml"), words[-2:]).run_directory == runs / "tiny"
    assert write_expanded([("run.directory", str(runs))], []) == [f'run.directory="{runs}"']

    # What a job does, and who asks about it.
    assert run("submit slurm --executor local --wait tiny.yaml").code == 0
    assert (runs / "tiny" / "result.json").exists()
    assert run("submit slurm --executor local --wait -- evaluate runs/tiny --split val").code == 0
    assert "finished" in run("status runs/tiny").out


class Dashboard:
    """Of a Ray cluster: keeps what is sent to it; its job sees the sweep directory, or it fails."""

    def __init__(self, *, sees: bool = True) -> None:
        self.sees = sees
        self.commands: list[str] = []

    def submit_job(self, *, entrypoint: str, runtime_env: dict[str, Any]) -> str:
        self.commands.append(entrypoint)
        marker = runtime_env["env_vars"].get("DISTBRANCH_MARKER")
        if self.sees and marker:
            Path(marker).unlink()
        return "raysubmit_1"

    def get_job_status(self, _: str) -> str:
        return "RUNNING" if self.sees else "FAILED"

    def get_job_logs(self, _: str) -> str:
        return "Error: The run directory is another folder.\n"


@pytest.mark.usefixtures("sweep_file")
def test_the_job_of_a_sweep_is_recorded_in_its_directory_and_submitted_once(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard = Dashboard()
    for module, client in ((ray_jobs, "open_job_client"), (jobs, "JobClient")):
        monkeypatch.setattr(module, client, lambda _: dashboard)
    command = f"submit ray -- sweep s.yaml directory={world}/runs data.path={world}/data"
    assert run(command).code == 0
    job = read_job(world / "runs" / "s")
    assert job is not None
    assert (job.kind, job.id, job.command) == ("ray", "raysubmit_1", "sweep")
    assert "has the ray job raysubmit_1 of `sweep` already" in run(command).out
    assert len(dashboard.commands) == 1

    # About a run there may be a job beside the one that trains it.
    assert run(f"submit ray -- evaluate {world}/runs/tiny").code == 0
    assert read_job(world / "runs" / "tiny") is None
    of_evaluation = read_job(world / "runs" / "tiny" / "slurm" / "evaluate")
    assert of_evaluation is not None
    assert of_evaluation.command == "evaluate"


@pytest.mark.usefixtures("sweep_file")
def test_a_sweep_whose_directory_the_cluster_does_not_see_leaves_nothing_here(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, client in ((ray_jobs, "open_job_client"), (jobs, "JobClient")):
        monkeypatch.setattr(module, client, lambda _: Dashboard(sees=False))
    with nothing_overwritten(world, ()):
        ended = run(f"submit ray -- sweep s.yaml directory={world}/runs data.path={world}/data")
    assert_one_sentence(ended, 1, ("raysubmit_1 ended before", "is another folder"))


def test_a_command_here_is_awaited_and_recorded_beside_the_run(world: Path) -> None:
    ended = run("submit slurm --executor local --wait -- evaluate runs/tiny --split val")
    assert ended.code == 0, ended.out + ended.err
    assert "bright" in ended.out
    job = read_job(world / "runs" / "tiny" / "slurm" / "evaluate")
    assert job is not None
    assert (job.kind, job.command) == ("local", "evaluate")
    assert read_exit_code(Path(job.log).parent) == 0


def test_a_look_at_a_machine_is_a_job_whose_log_is_kept_with_the_runs(world: Path) -> None:
    ended = run("submit slurm --executor local --wait -- doctor --ranks 2 --storage runs")
    assert ended.code == 0, ended.out + ended.err
    assert "2 ranks on 1 host(s)" in ended.out
    assert "2 ranks on 1 host(s)" in run("logs runs doctor").out
    script = run(f"{SLURM} --nodes 2 -- doctor --ranks 16").out
    assert "#SBATCH --nodes=2" in script
    assert f"#SBATCH --output={world}/runs/slurm/doctor/slurm/" in script


@pytest.mark.usefixtures("sweep_file")
def test_who_waits_for_what_is_submitted_already_waits_for_that_job(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = world / "log"
    log.write_text("begun\n")
    commands = {
        "submit slurm --executor local --wait tiny.yaml run.name=new": "new",
        "submit slurm --executor local --wait -- sweep s.yaml": "s",
    }
    for command, name in commands.items():
        (world / "runs" / name).mkdir()
        write_job(world / "runs" / name, Job("slurm", "7", "partition gpu", str(log), "", "x"))
        states = ["running on n1", "running on n1", "ended (CANCELLED with exit code 0:15)"]
        for module in (slurm_jobs, submission, jobs, job_command):
            monkeypatch.setattr(
                module,
                "describe_job_state",
                lambda _, states=states: states.pop(0) if states[1:] else states[0],
            )
        ended = run(command)
        assert ended.code == EXIT_PREEMPTED, ended.out + ended.err
        assert "has the slurm job 7" in ended.out
        assert "begun\n" in ended.out

    monkeypatch.setattr(ray_jobs, "open_job_client", lambda _: Dashboard())
    monkeypatch.setattr(job_command, "describe_job_state", lambda _: "running on n1")
    ended = run(f"submit ray --wait -- sweep s.yaml directory={world}/runs data.path={world}/data")
    assert_one_sentence(ended, 1, ("waits for a job of Ray, found the slurm job 7",))


def test_a_submission_that_slurm_refuses_leaves_the_record_of_the_job_before(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("Slurm refuses: closed.")

    config = load_config(world / "tiny.yaml", [f"run.directory={world}/runs", "run.name=new"])
    begin_run(with_absolute_paths(config))
    job = Job("slurm", "7", "partition gpu", "log", "")
    write_job(config.run_directory, job)
    monkeypatch.setattr(submission, "check_partition", lambda _: None)
    monkeypatch.setattr(submission, "describe_job_state", lambda _: "ended")
    monkeypatch.setattr(submission, "submit_tasks", refuse)
    assert_one_sentence(run("submit slurm tiny.yaml run.name=new"), 1, ("refuses: closed",))
    assert read_job(config.run_directory) == job


def test_a_record_of_an_earlier_release_is_one_of_training(tmp_path: Path) -> None:
    write_job(tmp_path, Job("slurm", "7", "partition gpu", "", ""))
    record = json.loads((tmp_path / "job.json").read_text())
    del record["command"]
    (tmp_path / "job.json").write_text(json.dumps(record))
    job = read_job(tmp_path)
    assert job is not None
    assert job.command == "train"


@pytest.mark.parametrize(
    ("code", "state", "expected"),
    [
        (0, "ended (COMPLETED with exit code 0:0)", 0),
        (75, "ended (COMPLETED with exit code 0:0)", EXIT_PREEMPTED),
        (1, "ended (FAILED with exit code 1:0)", 1),
        (None, "ended (CANCELLED with exit code 0:15)", EXIT_PREEMPTED),
        (None, "ended (NODE_FAIL with exit code 1:0)", 1),
    ],
)
def test_who_waits_ends_as_the_command_of_the_job_did(
    code: int | None,
    state: str,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = JobCommand("sweep", ("sweep", "s.yaml"), str(tmp_path), launch=LaunchConfig())
    command.folder.mkdir()
    if code is not None:
        write_exit_code(command.folder, code)
    (tmp_path / "log").write_text("begun\n")
    for module in (slurm_jobs, jobs, job_command):
        monkeypatch.setattr(module, "describe_job_state", lambda _: state)
    job = Job("slurm", "7", "partition gpu", str(tmp_path / "log"), "", "sweep")
    said: list[str] = []
    found = slurm_jobs.wait_for_command(command, job, say=said.append, show=said.append)
    assert found == expected
    assert "begun\n" in said


def test_who_waits_for_an_array_asks_the_queue_once_for_all_and_ends_as_its_worst_trial_did(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(world / "tiny.yaml", [f"run.directory={world}/runs"])
    others = [load_config(config, {"run.name": name}) for name in ("one", "two")]
    for number, trial in enumerate([config, *others]):
        trial.run_directory.mkdir(exist_ok=True)
        write_job(trial.run_directory, Job("slurm", f"12_{number}", "partition gpu", "", ""))
    looks = [{"12_1", "12_2"}, {"12_1"}, set()]
    monkeypatch.setattr(
        submission, "read_slurm_states", lambda: dict.fromkeys(looks.pop(0), "running")
    )
    monkeypatch.setattr(submission, "SECONDS_BETWEEN_LOOKS", 0)
    state = "ended (COMPLETED with exit code 0:0)"
    monkeypatch.setattr(submission, "describe_job_state", lambda _: state)
    said: list[str] = []
    assert submission.wait_for_runs([config, *others], say=said.append) == EXIT_PREEMPTED
    assert not looks
    assert said[0] == "tiny is finished (2 left)"
    assert said[2] == f"one is not finished: its job has {state} (0 left)"
    state, looks = "ended (FAILED with exit code 1:0)", [set()]
    assert submission.wait_for_runs([config, *others], say=said.append) == 1


def test_a_task_waits_for_all_nodes_of_a_sweep_but_not_for_one_that_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task(("sweep", "s.yaml"), str(tmp_path), str(tmp_path))
    place = Place(tmp_path, "7", "0", 0, 3)
    place.shared.mkdir()
    Place(tmp_path, "7", "0", 1, 3).announce("joined")
    Place(tmp_path, "7", "0", 2, 3).announce("lost")
    assert task._wait_for_nodes(place)
    assert "2 of 3 nodes have joined" in capsys.readouterr().out
    Place(tmp_path, "7", "0", 2, 3).announce("joined")
    assert task._wait_for_nodes(place)
    assert capsys.readouterr().out == ""
    task.asked_at = 1.0
    assert not task._wait_for_nodes(place)


def test_a_command_that_saves_nothing_says_so_when_it_is_ended(tmp_path: Path) -> None:
    task = Task(("evaluate", "runs/absent"), str(tmp_path), here=str(tmp_path), asked_at=1e9)
    place = Place(tmp_path, "7", "0", 0, 1)
    place.scratch.mkdir()
    try:
        with pytest.raises(UserError, match=r"ended before `distbranch evaluate` had.*--time\.$"):
            task._run_command(place)
    finally:
        place.scratch.rmdir()
    assert not list(tmp_path.glob("stop"))
    assert read_exit_code(tmp_path) is None

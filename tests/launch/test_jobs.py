"""What can be asked of a run, whoever trains it: status, logs, cancel; and jobs on this machine, without Slurm."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rank_server import RankServer
from tiny_runs import assert_same_content, config_of, train_tiny
from tiny_world import run_command

from distbranch.config import load_config
from distbranch.engine.checkpoint import load_newest
from distbranch.engine.run_start import check_run
from distbranch.errors import UsageError, UserError
from distbranch.launch import jobs
from distbranch.launch.jobs import (
    Job,
    cancel_run,
    describe_job_state,
    describe_status,
    read_job,
    write_job,
)
from distbranch.launch.on_ray import job as ray_job
from distbranch.launch.on_slurm.queue import explain_refusal
from distbranch.launch.on_slurm.resources import Resources, parse_minutes
from distbranch.launch.on_slurm.submission import render_batch_script
from distbranch.launch.prepare import with_absolute_paths
from distbranch.launch.processes import PORTS, find_free_port
from distbranch.listing.asking import read_log


def saved_step(run: Path) -> int:
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    return int(checkpoint.state["progress"]["iteration"])


def wait_until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"waited {timeout_s} s"
        time.sleep(0.1)


def test_a_run_of_plain_train_is_cancelled_with_everything_saved(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config, run, ended, said = (
        config_of(tiny_data, tmp_path, **{"train.iterations": 50_000}),
        tmp_path / "tiny",
        [],
        [],
    )
    training = threading.Thread(target=lambda: ended.extend(ranks.run(train_tiny, config=config)))
    training.start()
    wait_until(
        lambda: (run / "metrics.jsonl").exists() and "train" in (run / "metrics.jsonl").read_text()
    )
    assert ("trained by", "a process of `distbranch train`") in describe_status(run)
    cancel_run(run, patience_s=60, say=said.append)
    training.join()
    assert ended[0].value["end"] == "stopped", ended[0].output
    assert f"after step {saved_step(run)} of" in ended[0].value["message"]
    assert said[-1] == "The run has stopped; the same command continues it."
    answers = dict(describe_status(run))
    assert answers["trained by"] == "nobody now"
    assert answers["last checkpoint"] == f"step-{saved_step(run):08d}"
    with pytest.raises(UserError, match="no process of it trains the run"):
        cancel_run(run, patience_s=60, say=said.append)
    with pytest.raises(UserError, match="wrote to its own terminal"):
        next(read_log(run, follow=False))


def test_a_finished_run_is_not_cancelled(undisturbed: Callable[[int], Path]) -> None:
    said: list[str] = []
    cancel_run(undisturbed(1), patience_s=1, say=said.append)
    assert "is finished already" in said[0]
    assert dict(describe_status(undisturbed(1)))["finished"] == "after 48 steps"


def test_a_folder_that_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run directory: it should hold config\.yaml"):
        describe_status(tmp_path)


def test_a_job_that_was_written_is_read_again_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert read_job(tmp_path) is None
    job = Job("slurm", "12_3", "partition gpu", "/shared/12_3_0_log.out", "2026-01-02 03:04:05")
    write_job(tmp_path, job)
    assert read_job(tmp_path) == job
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(UserError, match=r"job\.json cannot be read"):
        read_job(tmp_path)


def test_the_number_of_a_local_job_is_not_taken_for_a_later_process(
    undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text((undisturbed(1) / "config.yaml").read_text())
    write_job(tmp_path, Job("local", str(os.getpid()), "here", "", "2001-01-01 00:00:00"))
    assert dict(describe_status(tmp_path))["trained by"].endswith(": ended")
    with pytest.raises(UserError, match="no process of it trains the run"):
        cancel_run(tmp_path, patience_s=1, say=lambda _: None)


def test_a_local_job_is_cancelled_and_continued_to_the_same_bits(
    tiny_data: Path, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    here, run = Path(__file__).resolve(), tmp_path / "runs" / "tiny"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config_of(tiny_data, tmp_path / "runs")))
    paths = os.pathsep.join(map(str, (here.parents[2], here.parents[1] / "slurm_pace")))
    given = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def types(*words: str, seconds_per_step: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "distbranch", *words],
            env={**given, "TEST_SECONDS_PER_STEP": seconds_per_step},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    begun = types("submit", "slurm", "tiny.yaml", "--executor", "local", seconds_per_step="0.5")
    assert begun.returncode == 0, begun.stderr
    wait_until(
        lambda: (run / "metrics.jsonl").exists() and "train" in (run / "metrics.jsonl").read_text()
    )
    job = read_job(run)
    assert job is not None
    assert dict(describe_status(run))["trained by"].endswith(f"running as process {job.id}")
    assert os.getsid(int(job.id)) == int(job.id), "keys of the terminal and its end would reach it"
    cancel_run(run, patience_s=60, say=lambda _: None)
    assert f"Stopped after step {saved_step(run)} of 48" in "".join(read_log(run, follow=False))

    ended = types(
        "submit", "slurm", "tiny.yaml", "--executor", "local", "--wait", seconds_per_step="0"
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "run directory:" in ended.stdout
    assert_same_content(run, undisturbed(1))


def test_a_controller_that_is_away_for_a_while_does_not_end_the_log(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_of(tiny_data, tmp_path)))
    (tmp_path / "log").write_text("begun\n")
    write_job(
        tmp_path, Job("slurm", "7", "partition gpu", str(tmp_path / "log"), "2026-01-02 03:04:05")
    )
    (tmp_path / "answers").write_text("silence\nsilence\nRUNNING\nCOMPLETED\n")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        f"""#!/bin/sh
        cd {tmp_path}
        answer=$(head -n 1 answers)
        sed -i 1d answers
        if [ "$answer" = RUNNING ]; then echo ended >> log; fi
        if [ "$answer" != silence ]; then echo "JobId=7 JobState=$answer"; exit 0; fi
        echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
        exit 1
        """
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(jobs, "SECONDS_BETWEEN_LOOKS", 0.01)
    pieces, read_bytes = [], jobs._read_log_bytes
    monkeypatch.setattr(
        jobs, "_read_log_bytes", lambda *given: pieces.append(read_bytes(*given)) or pieces[-1]
    )
    assert "".join(read_log(tmp_path, follow=True)) == "begun\nended\n"
    assert b"".join(pieces) == b"begun\nended\n", "nothing is read twice"

    (tmp_path / "answers").write_text("silence\n" * 100)
    with pytest.raises(UserError, match=r"whose job is unknown .*slurmctld does not answer"):
        cancel_run(tmp_path, patience_s=1, say=lambda _: None)
    monkeypatch.setattr(jobs, "SECONDS_OF_SILENCE", 0.1)
    with pytest.raises(UserError, match="Whether the job 7 still runs is unknown"):
        list(read_log(tmp_path, follow=True))


class Dashboard:
    """Of a Ray cluster: keeps what is sent to it; its job sees the run directory, or it fails."""

    def __init__(self, *, sees: bool = True) -> None:
        self.sees = sees

    def submit_job(self, *, entrypoint: str, runtime_env: dict[str, Any]) -> str:
        self.command = entrypoint
        if self.sees:
            Path(runtime_env["env_vars"]["DISTBRANCH_MARKER"]).unlink()
        return "raysubmit_1"

    def get_job_status(self, _: str) -> str:
        return "RUNNING" if self.sees else "FAILED"

    def get_job_logs(self, _: str) -> str:
        return "Loading.\nError: The run directory is another folder.\n"


def test_a_job_of_ray_is_told_in_full_where_a_run_begins_from(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy, dashboard = tmp_path / "source", tmp_path / "copy", Dashboard()
    runs = tmp_path / "runs"
    changes = {
        "method.name": "fixed",
        "method.groups": f"{runs}/grown",
        "data.cache_directory": f"{tmp_path}/cache",
    }
    changes |= {"method.init": "somp", "method.pretrained": f"{tmp_path}/wide"}
    source.mkdir()
    (source / "tiny.yaml").write_text(yaml.safe_dump(config_of(tiny_data, runs, **changes)))
    shutil.copytree(source, copy)
    monkeypatch.setattr(ray_job, "open_job_client", lambda _: dashboard)
    monkeypatch.setattr(jobs, "JobClient", lambda _: dashboard)
    monkeypatch.chdir(source)
    config, address = Path("tiny.yaml"), "http://head:8265"
    assert (
        ray_job.submit_ray_job(config, ["seed=4"], address=address, wait=False, say=lambda _: None)
        == 0
    )

    monkeypatch.chdir(copy)
    [*program, file, seed] = shlex.split(dashboard.command)[:6]
    assert program == ["python", "-m", "distbranch", "train"]
    there = with_absolute_paths(load_config(file, [seed, *shlex.split(dashboard.command)[6:]]))
    check_run(there)  # the run that was begun here
    assert read_job(runs / "tiny") is not None


def test_a_job_that_does_not_see_the_run_directory_leaves_nothing_of_it_here(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config_of(tiny_data, tmp_path / "runs")))
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(ray_job, "open_job_client", lambda _: Dashboard(sees=False))
    monkeypatch.setattr(jobs, "JobClient", lambda _: Dashboard(sees=False))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError,
        match=r"raysubmit_1 ended before it trained: The run directory is another folder\.$",
    ):
        ray_job.submit_ray_job(
            Path("tiny.yaml"), [], address="http://head:8265", wait=False, say=lambda _: None
        )
    assert not (tmp_path / "runs" / "tiny").exists()


@pytest.mark.parametrize(("code", "state"), [(404, "ended"), (500, "unknown")])
def test_a_dashboard_that_fails_for_a_moment_does_not_end_a_job(
    code: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Dashboard):
        def get_job_status(self, _: str) -> str:
            raise RuntimeError(f"Request failed with status code {code}: raysubmit_1.")

    monkeypatch.setattr(jobs, "JobClient", lambda _: Failing())
    assert describe_job_state(Job("ray", "raysubmit_1", "http://head:8265", "", "")).startswith(
        state
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("1:30", 2),
        ("12:00:00", 720),
        ("00:01:01", 2),
        ("2-00:00:00", 2880),
        ("1-12", 2160),
    ],
)
def test_time_limits_are_read_as_slurm_writes_them(text: str, expected: int) -> None:
    assert parse_minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "12h", "1:2:3:4", "-5", "0", "0:30"])
def test_a_time_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--time"):
        parse_minutes(text)


def test_the_batch_script_asks_for_what_was_given_and_needs_no_slurm(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = load_config(
        config_of(tiny_data, tmp_path, **{"train.batch_size": 32, "launch.device": "auto"})
    )
    asked = Resources(
        "gpu", nodes=2, gpus_per_node=8, cpus_per_node=32, timeout_min=720, qos="long", memory="64G"
    )
    text = render_batch_script(config, asked)
    for line in (
        "partition=gpu",
        "nodes=2",
        "ntasks-per-node=1",
        "gpus-per-node=8",
        "cpus-per-task=32",
        "time=720",
    ):
        assert f"#SBATCH --{line}\n" in text
    for line in (
        "qos=long",
        "mem=64G",
        "requeue",
        "signal=USR2@90",
        "open-mode=append",
        "job-name=tiny",
    ):
        assert f"#SBATCH --{line}\n" in text
    assert "mincpus" not in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert not (tmp_path / "tiny").exists()


def test_without_a_number_of_cores_every_node_has_as_many_as_its_ranks_need(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **{"train.batch_size": 32, "launch.device": "auto"})

    def asked(nodes: int, gpus: int = 0, **dotted: Any) -> str:
        text = render_batch_script(
            load_config(config, dotted), Resources(nodes=nodes, gpus_per_node=gpus)
        )
        return "".join(
            line.partition("=")[2]
            for line in text.splitlines()
            if line.startswith("#SBATCH --mincpus")
        )

    assert asked(2, gpus=8) == "8"
    assert asked(3, **{"launch.workers": 7}) == "3"
    assert asked(1, **{"launch.workers": 4, "launch.cpus_per_worker": 1.5}) == "6"
    assert asked(2) == asked(1) == ""


def test_an_array_trains_as_many_trials_at_once_as_the_sweep_says(world: Path) -> None:
    (world / "s.yaml").write_text("base: tiny.yaml\nseeds: [0, 1, 2, 3]\nconcurrency: 2\n")
    command = ["submit", "slurm-array", "s.yaml", "--dry-run"]
    script = run_command(command).out
    assert "--array=0-3%2\n" in script
    assert f"--output={world}/runs/s/slurm/%A_%a_0_log.out\n" in script
    assert "--array=0-3%3\n" in run_command([*command, "--at-once", "3"]).out


def test_options_that_cannot_be_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    cuda = load_config(config_of(tiny_data, tmp_path, **{"launch.device": "cuda"}))
    with pytest.raises(UsageError, match=r"launch\.device=cuda needs --gpus-per-node"):
        render_batch_script(cuda, Resources())
    elsewhere = load_config(config_of(tiny_data, tmp_path, **{"launch.address": "head:6379"}))
    with pytest.raises(UsageError, match=r"leave launch\.address out, found head:6379"):
        render_batch_script(elsewhere, Resources())
    two = load_config(config_of(tiny_data, tmp_path, **{"launch.workers": 2}))
    with pytest.raises(UsageError, match="leave some of --nodes 3 idle"):
        render_batch_script(two, Resources(nodes=3))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "--qos"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified", "--account"),
        ("sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", "--time"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", "fewer nodes"),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", "slurmctld"),
        ("sinfo: error: fetch_config: DNS SRV lookup failed\nsinfo: fatal: Could not establish a configuration source", "no Slurm cluster"),
        ("sbatch: error: Batch job submission failed: Something nobody has seen", "Something nobody has seen"),
    ],
)  # fmt: skip
def test_what_slurm_says_is_explained(said: str, meant: str) -> None:
    assert meant in explain_refusal(said)
    assert "\n" not in explain_refusal(said)


def test_a_port_that_is_asked_for_and_busy_is_refused_and_another_one_is_free() -> None:
    with socket.socket() as busy:
        busy.bind(("", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"The port {port} of \S+ is in use\. Give another --port"
        ):
            find_free_port(port)
    assert find_free_port(port) == port
    # Below those that the system gives to any connection while Ray still starts.
    assert find_free_port() in PORTS

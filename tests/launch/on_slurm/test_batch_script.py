"""What is asked of Slurm: GPUs however they are written, an environment of nobody else's job, and refusals told whole."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import config_of

from distbranch.cli.site_file import list_options
from distbranch.config import load_config
from distbranch.errors import UsageError
from distbranch.launch.on_slurm import hold_signals, queue
from distbranch.launch.on_slurm.node import count_gpus_of_this_node
from distbranch.launch.on_slurm.queue import explain_refusal
from distbranch.launch.on_slurm.resources import (
    Resources,
    list_variables_against,
    parse_further_options,
)
from distbranch.launch.on_slurm.submission import render_batch_script
from distbranch.launch.processes import restored_environment

WAYS = {
    "gres=gpu": 1,
    "gres=gpu:2": 2,
    "gres=gpu:a100:2": 2,
    "gres=gpu:a100": 1,
    "gres=gpu:1g.5gb:3": 3,
    "gres=gpu:a100:1,gpu:v100:2,nvme:1": 3,
    "gres=gpu:2(S:0-1)": 2,
    "gres=nvme:4": 0,
    "gres=none": 0,
    "gres=gpu:0": 0,
    "gres=shard:4": 1,
    "gpus=4": 4,
    "gpus=a100:4": 4,
    "gpus-per-node=2": 2,
    "gpus_per_node=a100:2": 2,
    "--gpus-per-task=3": 3,
    "tres-per-node=gres:gpu:2": 2,
    "tres-per-node=gres/gpu:a100=2": 2,
    "tres-per-task=cpu=4,gres/gpu=2": 2,
    "gres-flags=enforce-binding": 0,
}


def asking(*pairs: str, own: int = 0, nodes: int = 1) -> Resources:
    return Resources(
        gpus_per_node=own, nodes=nodes, further=parse_further_options(pairs, gpus_per_node=own)
    )


@pytest.mark.parametrize("way", WAYS)
def test_gpus_are_counted_in_every_way_of_sbatch(way: str) -> None:
    assert asking(way).num_gpus == WAYS[way]


def test_gpus_of_several_ways_should_agree_and_leave_nothing_open() -> None:
    assert asking("gres=gpu:a100:2", own=2).num_gpus == 2
    assert asking("gpus=4", own=4).num_gpus == 4
    with pytest.raises(UsageError, match=r"found --sbatch gres \(2\), --gpus-per-node \(1\): use"):
        _ = asking("gres=gpu:2", own=1).num_gpus
    with pytest.raises(
        UsageError, match=r"how many each of --nodes 2 has, found --sbatch gpus \(4\)"
    ):
        _ = asking("gpus=4", nodes=2).num_gpus
    with pytest.raises(UsageError, match=r"found --sbatch gpus-per-socket \(1\)"):
        _ = asking("gpus-per-socket=1").num_gpus


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in os.environ:
        if name.startswith(("SLURM", "SBATCH", "SRUN")):
            monkeypatch.delenv(name)
    return monkeypatch


def test_a_variable_of_sbatch_asks_for_gpus_where_the_command_does_not(
    no_slurm: pytest.MonkeyPatch,
) -> None:
    no_slurm.setenv("SBATCH_GRES", "gpu:2")
    assert asking().num_gpus == 2
    assert asking().further == {"gres": "gpu:2"}
    assert asking("gpus-per-node=4").num_gpus == 4
    assert asking(own=3).num_gpus == 3


def test_options_with_a_word_of_their_own_are_named_all_at_once() -> None:
    with pytest.raises(UsageError) as told:
        parse_further_options(
            ["nodes=2", "cpus_per_task=4", "--time=5", "nodelist=n1"], gpus_per_node=0
        )
    assert str(told.value) == (
        "Give --nodes in place of --sbatch nodes=2, and --cpus-per-node in place of --sbatch cpus-per-task=4, "
        "and --time in place of --sbatch time=5."
    )


# Options of `submit slurm` of which sbatch knows nothing, or, of the last, which count in whatever way they are asked for.
OURS_ALONE = {
    "sbatch",
    "srun",
    "setup",
    "container",
    "container_kind",
    "mounts",
    "port",
    "executor",
}
OURS_ALONE |= {"cpus_per_node", "signal_delay", "gpus_per_node"}


@pytest.mark.parametrize("key", sorted(list_options("slurm").keys() - OURS_ALONE))
def test_an_option_of_sbatch_that_has_a_word_of_its_own_overrules_none_in_silence(key: str) -> None:
    typed = key.replace("_", "-")
    with pytest.raises(UsageError, match=f"Give --{typed} in place of --sbatch {typed}"):
        parse_further_options([typed], gpus_per_node=0)


def test_what_contradicts_an_option_of_ours_is_refused_and_what_it_cannot_say_is_not() -> None:
    with pytest.raises(UsageError, match=r"a longer --time .* in place of --sbatch no-requeue"):
        parse_further_options(["no-requeue"], gpus_per_node=0)
    assert asking("exclusive=user").further == {"exclusive": "user"}
    with pytest.raises(UsageError, match="Give --exclusive in place of --sbatch exclusive=user"):
        parse_further_options(["exclusive=user"], gpus_per_node=0, exclusive=True)


def test_an_option_of_sbatch_may_have_no_value(tmp_path: Path) -> None:
    text = text_of(tmp_path, asking("hold", "comment=a b", "--mail_type=END", "mail-type=FAIL"))
    assert "#SBATCH --hold\n#SBATCH --job-name" in text
    assert re.findall("#SBATCH --(?:comment|mail).*", text) == [
        "#SBATCH --comment='a b'",
        "#SBATCH --mail-type=FAIL",
    ]
    with pytest.raises(UsageError, match=r"--sbatch takes KEY=VALUE.* found '=3'"):
        parse_further_options(["=3"], gpus_per_node=0)


@pytest.mark.parametrize("name", ["100%", "%j", "a\\b", "a\nb"])
def test_a_folder_that_slurm_would_call_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="should have no %, backslash or line break"):
        text_of(tmp_path / name, Resources())


def text_of(folder: Path, resources: Resources, **dotted: object) -> str:
    values = {"launch.device": "auto", "launch.workers": max(1, resources.num_gpus), **dotted}
    return render_batch_script(
        load_config(config_of("s3://nowhere/data", folder, **values)), resources
    )


def test_a_script_asks_for_gpus_once_and_for_the_cores_of_its_ranks(tmp_path: Path) -> None:
    text = text_of(tmp_path, asking("gres=gpu:a100:2", own=2))
    assert re.findall("#SBATCH --(g.*)", text) == ["gres=gpu:a100:2"]
    assert "#SBATCH --mincpus=2" in text
    assert re.findall("#SBATCH --(g.*)", text_of(tmp_path, asking(own=2))) == ["gpus-per-node=2"]


def test_srun_learns_of_the_cores_of_a_task_whatever_the_version_of_slurm(tmp_path: Path) -> None:
    """The shell runs the script's own beginning, with an srun that says what it was given."""
    text = text_of(tmp_path, Resources(cpus_per_node=8))
    assert "#SBATCH --cpus-per-task=8" in text
    beginning = text[text.index("# setup") : text.index("marker=")]
    told = 'echo "${SRUN_CPUS_PER_TASK-unset} ${SLURM_EXPORT_ENV-unset}"; env | grep -c ^SRUN_CPUS'
    for given, expected in (
        ({"SLURM_CPUS_PER_TASK": "8", "SLURM_EXPORT_ENV": "NONE"}, "8 unset\n1\n"),
        ({}, "unset unset\n0\n"),
    ):
        environment = {"PATH": os.environ["PATH"], **given}
        ended = subprocess.run(
            ["bash", "-c", beginning + told],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.stdout == expected, ended.stderr
    assert re.search(r"^srun .*--cpu-bind=none .*submitit", text, re.MULTILINE)


def test_a_job_has_one_task_per_node_also_when_it_got_another_number_of_nodes_than_it_asked_for(
    tmp_path: Path,
) -> None:
    """As after `scontrol update numnodes=1`: Slurm tells the number of tasks that was asked for first."""
    text = text_of(tmp_path, Resources())
    beginning = text[text.index("# setup") : text.index("marker=")]
    given = {"PATH": os.environ["PATH"], "SLURM_JOB_NUM_NODES": "1"}
    given |= {"SLURM_NTASKS": "2", "SLURM_NPROCS": "2"}
    command = ["bash", "-c", beginning + "env | grep -E '^SLURM_N(TASKS|PROCS)' | sort"]
    ended = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert ended.stdout == "SLURM_NPROCS=1\nSLURM_NTASKS=1\n", ended.stderr


def test_a_job_inherits_nothing_of_the_job_that_submits_it(no_slurm: pytest.MonkeyPatch) -> None:
    outer = {
        "SLURM_JOB_ID": "7",
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_MEM_PER_CPU": "10",
        "SRUN_CPUS_PER_TASK": "1",
    }
    for name, value in {**outer, "SLURM_CONF": "/etc/slurm.conf", "OTHER": "1"}.items():
        no_slurm.setenv(name, value)
    with restored_environment(list_variables_against([])):
        assert {
            name: value for name, value in os.environ.items() if name.startswith(("SLURM", "SRUN"))
        } == {"SLURM_CONF": "/etc/slurm.conf"}
        assert os.environ["OTHER"] == "1"
    no_slurm.delenv("SLURM_JOB_ID")
    assert "SLURM_CPU_BIND" not in list_variables_against([])  # no job: somebody wants it so


def test_the_environment_is_afterwards_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    before = dict(os.environ)
    with restored_environment(without=["KEPT", "ABSENT"]):
        assert "KEPT" not in os.environ
        os.environ |= {"NEW": "1", "PATH": "/nowhere"}
    assert dict(os.environ) == before


def test_variables_of_sbatch_count_where_the_script_says_nothing(
    no_slurm: pytest.MonkeyPatch,
) -> None:
    given = {
        "SBATCH_TIMELIMIT": "5",
        "SBATCH_MEM_PER_CPU": "10",
        "SBATCH_GPUS": "1",
        "SBATCH_ACCOUNT": "physics",
        "SBATCH_WAIT": "1",
    }
    for name, value in given.items():
        no_slurm.setenv(name, value)
    assert given.keys() - list_variables_against(["time", "mem", "partition"]) == {"SBATCH_ACCOUNT"}


def test_a_wckey_of_the_profile_counts_though_every_script_names_one(
    tmp_path: Path, no_slurm: pytest.MonkeyPatch
) -> None:
    no_slurm.setenv("SBATCH_WCKEY", "climate")
    assert "#SBATCH --wckey=climate\n" in text_of(tmp_path, Resources())
    assert "#SBATCH --wckey=mine\n" in text_of(tmp_path, asking("wckey=mine"))


def test_the_gpus_of_a_job_are_those_that_slurm_names(no_slurm: pytest.MonkeyPatch) -> None:
    assert count_gpus_of_this_node() is None
    no_slurm.setenv("SLURM_JOB_GPUS", "0,1,5")
    assert count_gpus_of_this_node() == 3
    no_slurm.setenv("SLURM_GPUS_ON_NODE", "2")
    assert count_gpus_of_this_node() == 2


def test_a_warning_of_slurm_after_the_end_of_a_run_does_not_fail_its_job(tmp_path: Path) -> None:
    """The time limit's signal comes while the interpreter ends, when no handler of Python is left."""
    program = f"""import os, signal
from distbranch.launch.on_slurm.task import Place, Task
signal.signal(signal.SIGUSR2, lambda *_: None)
Task(("train", "config.yaml"), {str(tmp_path)!r})._finish(Place.from_environment({str(tmp_path)!r}), 0)
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGUSR2):
        kill(pid, number)
os.last = Last()
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


SITE = """sbatch: error: ------------------------------
sbatch: error: Jobs on gpu-h100 need a project with access.
sbatch: error: See https://hpc.example.org/projects.
sbatch: error: Batch job submission failed: Unspecified error"""
POLICY = """sbatch: error: AssocMaxSubmitJobLimit
sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit)"""
UNKNOWN = """sbatch: unrecognized option '--fast=1'
Try "sbatch --help" for more information"""
TOLD = {
    SITE: "Slurm refuses: Jobs on gpu-h100 need a project with access; See https://hpc.example.org/projects; Batch job submission "
    "failed: Unspecified error.",
    POLICY: "Slurm refuses (AssocMaxSubmitJobLimit; Batch job submission failed: Job violates accounting/QOS policy (job submit "
    "limit)): your account or QOS allows no more jobs or none so large: wait for others to end, or ask for less.",
    UNKNOWN: "Slurm refuses (unrecognized option '--fast=1'): --sbatch takes the long options of sbatch (`sbatch --help` lists them).",
    "": "Slurm refuses: nothing.",
}


@pytest.mark.parametrize("refusal", TOLD)
def test_all_that_a_refusal_says_is_in_one_sentence(refusal: str) -> None:
    assert explain_refusal(refusal) == TOLD[refusal]


def test_a_job_that_slurm_has_not_looked_at_waits_for_no_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = {
        "squeue": "7|PENDING||0:00|1:00:00|None\n8|PENDING||0:00|1:00:00|Priority\n",
        "scontrol": "JobId=7 JobName=x JobState=PENDING Reason=None\n",
    }
    monkeypatch.setattr(queue, "call_slurm", lambda name, *_: answers[name])
    assert queue.read_slurm_states() == {"7": "waiting", "8": "waiting (Priority)"}
    assert queue.read_slurm_state("7") == "waiting"


def test_a_signal_before_a_task_is_ready_for_it_waits_until_it_is() -> None:
    program = """
import os, signal
from distbranch.launch.on_slurm.hold_signals import HELD
for one in HELD:
    os.kill(os.getpid(), one)
print("still here")
for one in HELD:
    signal.signal(one, lambda number, _: print(signal.Signals(number).name))
signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
"""
    command = [sys.executable, "-I", "-S", hold_signals.__file__, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = ended.stdout.split("\n")[:-1]
    assert lines[0] == "still here"
    assert sorted(lines[1:]) == ["SIGTERM", "SIGUSR2"]

"""Slurm's own commands, as this package uses them: what it knows of a job, and what its refusals mean in one sentence."""

import re
import subprocess

from distbranch.errors import UsageError, UserError

TIMEOUT_S = 60  # a busy controller answers within seconds, and Slurm's own MessageTimeout is 10
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
RUNNING = (
    "RUNNING",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "STAGE_OUT",
    "RESIZING",
    "COMPLETING",
    "PREEMPTED",
)
# What Slurm's commands say, and what it means to somebody who has never used Slurm.
MEANINGS = (
    (r"munge", "munge, through which the nodes trust each other, does not answer here: ask the administrator to start it"),
    (r"configuration source|slurm\.conf", "this machine belongs to no Slurm cluster: use a login node of one, or --executor local"),
    (r"slurm controller|connection refused|timed out", "the controller slurmctld does not answer: try later, or ask the administrator"),
    (r"unrecognized option", "--sbatch takes the long options of sbatch (`sbatch --help` lists them)"),
    (r"violates accounting", "your account or QOS allows no more jobs or none so large: wait for others to end, or ask for less"),
    (r"invalid partition", "give a partition of those that `sinfo` lists"),
    (r"invalid account", "give an --account that may use this partition (`sacctmgr show associations user=$USER` lists yours)"),
    (r"qos", "give a --qos that your account may use"),
    (r"time limit", "--time is longer than the partition allows (`sinfo -o '%P %l'` shows the limits)"),
    (r"invalid feature|constraint", "no node has what --constraint asks for (`sinfo -o '%N %f'` shows what they have)"),
    (r"generic resource|gres|gpu", "the partition has no such GPUs or other resources, or not so many (`sinfo -o '%P %G'` shows them)"),
    (r"node count|processors|node configuration|memory", "ask for fewer nodes, cores or GPUs or less memory (`sinfo -o '%P %D %c %m %G'`)"),
    (r"job array", "the site allows fewer jobs in one array (MaxArraySize of `scontrol show config`): make the sweep smaller"),
    (r"permission|not permitted|not authorized|access", "you may not use this partition: ask the administrator, or give another one"),
)  # fmt: skip
PREFIX = re.compile(r"^[\w-]+: (?:(?:error|fatal|warning|lua): )*")
# Where Slurm itself says why, after what a site's own check may have said before.
OWN_REASON = re.compile(r"(?:submission|allocation) failed: (.*)", re.IGNORECASE)


def check_partition(partition: str | None) -> None:
    """Slurm answers and has this partition.

    Raises:
        UserError: no Slurm here, or one that does not answer.
        UsageError: another partition than those there are.
    """
    names = sorted(set(call_slurm("sinfo", "-h", "-o", "%R").split()))
    if partition is not None and not set(partition.split(",")) <= set(names):
        raise UsageError(f"--partition should be one of {', '.join(names)}, found '{partition}'.")


def call_slurm(*command: str) -> str:
    """The answer of one of Slurm's commands.

    Raises:
        UserError: it is absent, or refuses, with what that means.
    """
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise UserError(
            f"Slurm's command {command[0]} is not on this machine: use a login node of a Slurm cluster, or --executor local."
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(explain_refusal("timed out")) from None
    if ended.returncode:
        raise UserError(explain_refusal(ended.stderr))
    return ended.stdout


def explain_refusal(refusal: str) -> str:
    """One sentence about all that a command of Slurm said on its error stream, a site's own words among it."""
    lines = [PREFIX.sub("", line).strip(" .;") for line in refusal.splitlines()]
    words = [
        line
        for line in dict.fromkeys(lines)
        if re.search(r"\w", line) and not line.startswith('Try "')
    ]
    said = "; ".join(words) or "nothing"
    reason = OWN_REASON.search(refusal)
    meant = reason[1] if reason else refusal
    # The first that fits counts, so the order of the table matters.
    for pattern, meaning in MEANINGS:
        if re.search(pattern, meant, re.IGNORECASE):
            return f"Slurm refuses ({said}): {meaning}."
    return f"Slurm refuses: {said}."


def read_job_details(job_id: str) -> dict[str, str]:
    """What `scontrol show job` says; empty when Slurm has forgotten the job (some minutes after its end)."""
    try:
        words = call_slurm("scontrol", "show", "job", "-o", job_id).partition("\n")[0].split()
    except UserError as error:
        if "nvalid job id" in str(error):
            return {}
        raise
    # KEY=VALUE, separated by blanks; what a job's name or comment holds of them gives words without one.
    return dict(word.split("=", 1) for word in words if "=" in word)


def read_slurm_state(job_id: str) -> str:
    """'waiting (reason)', 'running on nodes ...' or 'ended (as what)'."""
    found = read_job_details(job_id)
    state = found.get("JobState", "")
    if state in WAITING:
        return _describe_waiting(found.get("Reason"))
    if state in RUNNING:
        return f"running on {found.get('NodeList')} for {found.get('RunTime')} of {found.get('TimeLimit')}"
    return f"ended ({state} with exit code {found.get('ExitCode')})" if state else "ended"


def _describe_waiting(reason: str | None) -> str:
    # Slurm has not looked at the job yet.
    return "waiting" if reason in (None, "None") else f"waiting ({reason})"


def is_preempted(job_id: str) -> bool:
    """Whether Slurm has warned a job that still runs: it will take its nodes, and nobody cancelled it."""
    found = read_job_details(job_id)
    return found.get("JobState") == "RUNNING" and found.get("PreemptTime", "None") not in (
        "None",
        "Unknown",
        "",
    )


def read_slurm_states() -> dict[str, str]:
    """The state of every job in the queue by its id (of a trial of an array `12_3`), in the words of `read_slurm_state`."""
    # -r: a line for each job of an array. %i id, %T state, %N nodes, %M time so far, %l time limit, %r reason.
    lines = call_slurm("squeue", "-r", "-h", "-o", "%i|%T|%N|%M|%l|%r").splitlines()
    states = {}
    for line in lines:
        job_id, state, nodes, used, limit, reason = line.split("|", 5)
        if state in WAITING:
            states[job_id] = _describe_waiting(reason)
        elif state in RUNNING:
            states[job_id] = f"running on {nodes} for {used} of {limit}"
        else:
            states[job_id] = f"ended ({state})"
    return states

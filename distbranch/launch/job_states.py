"""What many jobs do, with one question to Slurm and one to each Ray dashboard: a list of hundreds of runs asks no more."""

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from distbranch.errors import UserError, reason_of
from distbranch.launch.jobs import Job, describe_job_state, describe_ray_status
from distbranch.launch.on_ray.dashboard import JobClient
from distbranch.launch.on_slurm.queue import read_slurm_states

SECONDS_TO_ANSWER = 2.0  # of a dashboard: one that is gone should not hold up the list
DASHBOARDS_AT_A_TIME = 8


def read_job_states(jobs: Iterable[Job]) -> dict[Job, str]:
    """The state of every job, in the words of `describe_job_state`; jobs of Slurm that the queue does not list have ended."""
    jobs = set(jobs)
    states = {job: describe_job_state(job) for job in jobs if job.kind == "local"}
    states |= _ask_slurm([job for job in jobs if job.kind == "slurm"])
    of_ray = [job for job in jobs if job.kind == "ray"]
    addresses = sorted({job.where for job in of_ray})
    with ThreadPoolExecutor(DASHBOARDS_AT_A_TIME) as pool:
        answers = dict(zip(addresses, pool.map(_ask_dashboard, addresses), strict=True))
    for job in of_ray:
        answer = answers[job.where]
        if isinstance(answer, str):
            states[job] = answer
        else:
            states[job] = describe_ray_status(answer.get(job.id, "unknown there"), job.where)
    return states


def _ask_slurm(jobs: Collection[Job]) -> dict[Job, str]:
    if not jobs:
        return {}
    try:
        known = read_slurm_states()
    except UserError as error:
        return dict.fromkeys(jobs, f"unknown ({error})")
    return {job: known.get(job.id, "ended") for job in jobs}


def _ask_dashboard(address: str) -> dict[str, str] | str:
    """The status of every job of a cluster, or why it is unknown."""
    with suppress(RuntimeError):
        try:
            return JobClient(address, timeout_s=SECONDS_TO_ANSWER).list_job_statuses()
        except UserError as error:
            return f"unknown ({reason_of(error)})"
    return f"unknown (the dashboard at {address} does not list its jobs)"

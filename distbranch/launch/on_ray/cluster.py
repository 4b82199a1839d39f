"""The Ray cluster of a run: which one it is, how it is joined or started, and whether it can hold the run at all.

Ray is imported late: its settings are read when it is.
"""

import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from distbranch.config import Config, LaunchConfig
from distbranch.data.shards import DATASET_FILE, is_remote
from distbranch.engine.process_group import num_cores
from distbranch.engine.remote_run import RemoteRun
from distbranch.engine.run_log import Report
from distbranch.errors import UserError, reason_of
from distbranch.launch.on_ray.address import (
    VARIABLE,
    apply_token,
    cluster_address,
    create_token,
    explain_token,
    find_last_line,
    hide_ray_variables,
    is_node_address,
    reset_token,
)
from distbranch.launch.ray_folder import choose_ray_folder, explain_full_folder

SECONDS_TO_ANSWER = 10
SECONDS_BETWEEN_LOOKS = 1
# Ray's own defaults cost seconds per report and warn about things that a user of ours did not choose.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_worker_niceness": "0",  # Ray's 15 makes training wait for everything else that runs on the machine
}
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
SECONDS_TO_END = 10
BYTES_OF_NAME = len("db12345678")  # of a folder that tempfile makes
Node = Mapping[str, Any]  # of ray.nodes()


@contextmanager
def open_cluster(launch: LaunchConfig, settings: Mapping[str, str] | None = None) -> Iterator[str | None]:
    """Join the cluster of the run, or start one on this machine that ends with this block; gives its address, None if started.

    Ray's `settings` and our own ones count within the block; the environment is afterwards what it was.

    Raises:
        UserError: nobody answers there, or only to those who hold its token; or none can be started here.
    """
    address = cluster_address(launch)
    with _restore_environment():
        # A setting that the user's environment gives counts more than ours.
        for key, value in {**SETTINGS, **(settings or {})}.items():
            os.environ.setdefault(key, value)

        # A container's user may have neither HOME nor an entry in passwd, and Ray asks for a home when it is imported.
        if os.path.expanduser("~") == "~":
            os.environ["HOME"] = tempfile.gettempdir()
        if _is_connected():  # a trial of a sweep, which lives in a worker of its cluster
            yield address
            return

        # The token must be in the environment before Ray is told to look for it.
        apply_token()
        if address is None:
            create_token()
        reset_token()
        logging.getLogger("ray").setLevel(logging.ERROR)

        if address is None:
            with _start_cluster(launch):
                yield None
        else:
            with _join_cluster(address):
                yield address


@contextmanager
def _start_cluster(launch: LaunchConfig) -> Iterator[None]:
    """A cluster of this machine; none of its processes and files is left."""
    import ray

    folder = choose_ray_folder(BYTES_OF_NAME)
    cpus = max(num_cores(), round(launch.most_workers * launch.cpus_per_worker))
    # Of this process's children only those that Ray starts from here on are its own to end.
    others = set(psutil.Process().children(recursive=True))
    with tempfile.TemporaryDirectory(prefix="db", dir=folder, ignore_cleanup_errors=True) as own:
        try:
            with _explain_failures(None):
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=own, **QUIET)
            yield
        finally:
            processes = set(psutil.Process().children(recursive=True)) - others
            ray.shutdown()
            _kill_processes(processes)


@contextmanager
def _join_cluster(address: str) -> Iterator[None]:
    import ray

    with _explain_failures(address):
        ray.init(address=_check_address(address), **QUIET)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _explain_failures(address: str | None) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any kind: Ray raises bare ones, where its disk is full say
        raise UserError(_explain_cluster_error(address, error)) from None


def _kill_processes(processes: Iterable[psutil.Process]) -> None:
    """What Ray started ends with it, some of it a moment later."""
    for process in psutil.wait_procs(processes, timeout=SECONDS_TO_END)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _explain_cluster_error(address: str | None, error: Exception) -> str:
    reason = reason_of(error)[:300]
    if address is None and (full := explain_full_folder()):
        return full
    if address is None:
        return f"Ray cannot be started on this machine ({reason}). `distbranch doctor` shows what is wrong with it."
    if "token" in reason.lower():
        return explain_token(f"of launch.address={address}")
    return (
        f"The Ray cluster {address} cannot be used ({reason}). Check that it runs there and that this machine is one of its "
        "nodes (else use `distbranch submit ray --address http://HEAD:8265`), or leave launch.address empty."
    )


def _check_address(address: str) -> str:
    """The address as HOST:PORT, when somebody answers there who knows us; Ray itself would try for minutes."""
    # Private calls, for no public one does the same: `ray.init` finds `auto` by itself, but only while it connects, and then it
    # asks a port where nobody answers, or a token that is wrong, twenty times before it fails.
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # of its C++ part

    of_job = os.environ.get(VARIABLE, "")
    if address == "auto" and is_node_address(of_job):
        address = of_job
    with hide_ray_variables():
        found = str(canonicalize_bootstrap_address_or_die(address))
    host, _, port = found.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    GcsClient(address=found)  # raises at once where a token is wanted
    return found


def _is_connected() -> bool:
    """Whether this process has joined a cluster before; asked without loading ray, which reads its settings when it is."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@contextmanager
def _restore_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for key in os.environ.keys() - before.keys():
            del os.environ[key]
        os.environ.update(before)


# ---- resources


def uses_gpu(launch: LaunchConfig) -> bool:
    """Whether the workers run on GPUs: as asked, or if there are enough of them."""
    if launch.device != "auto":
        return launch.device == "cuda"
    return max_workers(list_alive_nodes(), get_worker_resources(launch, gpu=True)) >= launch.least_workers


def get_worker_resources(launch: LaunchConfig, *, gpu: bool) -> dict[str, float]:
    """What Ray sets aside for each worker."""
    amounts = {"CPU": launch.cpus_per_worker}
    if gpu:
        amounts["GPU"] = launch.gpus_per_worker
    return amounts


def list_alive_nodes() -> list[Node]:
    """The nodes of the cluster that are there."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def check_resources(launch: LaunchConfig, report: Report, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Ray waits for ever for what a cluster will never have: say so at once, or after `launch.wait_for_nodes_min`.

    Raises:
        UserError: with what is there and what was asked.
    """
    import ray

    each = get_worker_resources(launch, gpu=uses_gpu(launch))
    found = max_workers(list_alive_nodes(), each)
    if found < launch.most_workers and launch.wait_for_nodes_min:
        report({"kind": "warning", "message": f"Waiting for nodes: {_describe_request(launch, each)} do not fit yet."})
        found = _wait_for_nodes(launch, each, should_stop)
    if should_stop():
        return
    if found < launch.least_workers:
        raise UserError(_explain_too_little(launch, each, found))

    # What others use now comes free some time, so this is no error.
    free = ray.available_resources()
    busy = [name for name, amount in each.items() if free.get(name, 0) < amount * launch.least_workers]
    if busy:
        report({"kind": "warning", "message": f"The cluster is busy ({' and '.join(busy)}): Ray waits for room."})


def _wait_for_nodes(launch: LaunchConfig, each: Mapping[str, float], should_stop: Callable[[], bool]) -> int:
    """How many workers fit when all do, or the patience of `launch.wait_for_nodes_min` is at its end."""
    from ray.autoscaler.sdk import request_resources

    # An autoscaler adds nodes only for what somebody asks for; nodes that people add by hand are found all the same.
    request_resources(bundles=[each] * launch.most_workers)
    deadline = time.monotonic() + 60 * launch.wait_for_nodes_min
    found = max_workers(list_alive_nodes(), each)
    while found < launch.most_workers and time.monotonic() < deadline and not should_stop():
        time.sleep(SECONDS_BETWEEN_LOOKS)
        found = max_workers(list_alive_nodes(), each)
    request_resources(bundles=[])  # from now on the run itself holds them
    return found


def _explain_too_little(launch: LaunchConfig, each: Mapping[str, float], fit: int) -> str:
    nodes = list_alive_nodes()
    total = {}
    largest = {}
    for name in each:
        amounts = [node["Resources"].get(name, 0) for node in nodes]
        total[name] = sum(amounts)
        largest[name] = max(amounts, default=0)
    return (
        f"The run asks for {_describe_request(launch, each)}, but the Ray cluster has room for {fit} of them: "
        f"it has {_format_amounts(total)} on {len(nodes)} node(s), at most {_format_amounts(largest)} on one. "
        "Lower launch.workers, launch.cpus_per_worker or launch.gpus_per_worker, or add nodes (launch.wait_for_nodes_min waits for them)."
    )


def _describe_request(launch: LaunchConfig, each: Mapping[str, float]) -> str:
    most = f" to {launch.most_workers}" if launch.most_workers > launch.least_workers else ""
    return f"{launch.least_workers}{most} worker(s) with {_format_amounts(each)} each"


def _format_amounts(amounts: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in amounts.items())


def max_workers(nodes: Sequence[Node], each: Mapping[str, float]) -> int:
    """How many workers fit, node by node: a worker is never divided."""
    tiny = 1e-9  # 0.3 goes three times into 0.9, whatever floating point says
    total = 0
    for node in nodes:
        there = node["Resources"]
        total += min(int(there.get(name, 0) / amount + tiny) for name, amount in each.items())
    return total


# ---- storage


def check_storage(config: Config, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Every node on which a worker may come has this package, and sees the run directory and the data.

    Raises:
        UserError: naming the node that does not, and what it lacks.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    launch = config.launch
    each = get_worker_resources(launch, gpu=uses_gpu(launch))
    nodes = [node for node in list_alive_nodes() if max_workers([node], each)]
    word = secrets.token_hex(8)
    marker = config.run_directory / f".seen-{word}"
    marker.write_text(word)
    try:
        # Ask all nodes at once. A look takes no CPU, so that it need not wait for whoever uses them.
        looks = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look_at = ray.remote(check_node).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            looks[look_at.remote(config.run_url or str(marker), word, config.data.paths)] = node

        # Wait for their answers, in turns in which a signal is heard.
        deadline = time.monotonic() + 60 * launch.timeout_min
        done: list[Any] = []
        silent = list(looks)
        while silent and time.monotonic() < deadline and not should_stop():
            done, silent = ray.wait(list(looks), num_returns=len(looks), timeout=SECONDS_BETWEEN_LOOKS)

        # The first problem ends the run; a node that is silent is one too.
        for look in done:
            try:
                problem = ray.get(look)
            except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
                continue  # the node has left since it was listed, so no worker comes there
            except ray.exceptions.RayError as error:
                problem = _explain_import_error(error)
            if problem:
                raise UserError(f"The node {_format_node(looks[look])} {problem}")
        if silent and not should_stop():
            names = ", ".join(_format_node(looks[look]) for look in silent[:5])
            raise UserError(
                f"{len(silent)} node(s) gave no answer within launch.timeout_min={launch.timeout_min:g}: {names}."
            )
    finally:
        marker.unlink(missing_ok=True)


def check_node(place: str, word: str, data: Sequence[str]) -> str:
    """Run on every node: what is missing there, as the end of a sentence; empty if nothing is.

    Args:
        place: a file of the run directory that holds `word`, or the URL of the run directory.
        word: see `place`.
        data: folders and URLs of data sets.
    """
    problem = _check_url(place) if is_remote(place) else _check_folder(Path(place), word)
    if problem:
        return problem
    for path in data:
        if not is_remote(path) and not (Path(path) / DATASET_FILE).exists():
            return f"does not see the data set {path}. Give a data.path that all nodes see, or a URL."
    return ""


def _check_url(url: str) -> str:
    try:
        RemoteRun(url, Path()).check_access()
    except UserError as error:
        return f"says: {error}"
    return ""


def _check_folder(marker: Path, word: str) -> str:
    try:
        seen = marker.read_text() == word
    except OSError:
        seen = False
    advice = "Give a run.directory on storage that all nodes see under one path (NFS, a mounted bucket), or a URL."
    if not seen:
        return f"does not see the run directory {marker.parent} of this machine. {advice}"
    own = marker.with_name(f"{marker.name}-{secrets.token_hex(8)}")
    try:
        own.write_text(word)
        own.unlink()
    except OSError as error:
        return f"cannot write to the run directory {marker.parent} ({error.strerror}). {advice}"
    return ""


def _explain_import_error(error: Exception) -> str:
    # A missing module stands somewhere above the last line, in the error's cause.
    last = find_last_line(error, type(error).__name__)
    missing = next((line.strip() for line in str(error).splitlines() if "No module named" in line), last)
    return f"cannot run distbranch ({missing[:200]}). Install the same versions on every node, or submit the source with the job."


def _format_node(node: Node) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"

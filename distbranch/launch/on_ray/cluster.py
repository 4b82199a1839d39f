"""The Ray cluster of a run: which one it is, how it is joined or started, and whether it can hold the run at all.

Ray is imported late: its settings are read when it is.
"""

import logging
import os
import re
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from distbranch.config import Config, LaunchConfig
from distbranch.config.paths import is_remote
from distbranch.data.shards import DATASET_FILE
from distbranch.engine.cores import num_cores
from distbranch.engine.process_group import count_mig_parts
from distbranch.engine.remote_run import RemoteRun
from distbranch.engine.run_log import Report
from distbranch.errors import UserError, reason_of
from distbranch.launch.on_ray.address import (
    VARIABLE,
    apply_token,
    cluster_address,
    explain_token,
    find_last_line,
    hide_ray_variables,
    is_node_address,
)
from distbranch.launch.processes import end_processes, look_until, restored_environment
from distbranch.launch.ray_folder import choose_ray_folder, explain_full_folder
from distbranch.signals import hidden_from_children

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
# Of workers, which end with their raylet; its agents would look for its reasons first.
SECONDS_TO_END = 1
BYTES_OF_NAME = len("db12345678")  # of a folder that tempfile makes
STORAGE_ADVICE = "Give a run.directory on storage that all nodes see under one path (NFS, a mounted bucket), or a URL."
Node = Mapping[str, Any]  # of ray.nodes()


@contextmanager
def open_cluster(
    launch: LaunchConfig,
    settings: Mapping[str, str] | None = None,
    *,
    metrics_port: int | None = None,
) -> Iterator[str | None]:
    """Join the cluster of the run, or start one on this machine that ends with this block; gives its address, None if started.

    Ray's `settings` and our own ones count within the block; the environment is afterwards what it was. Of a cluster that was
    started no process and no file is left. `metrics_port`: of 127.0.0.1, where such a one tells Prometheus about itself.

    Raises:
        UserError: nobody answers there, or only to those who hold its token; or none can be started here.
    """
    address = cluster_address(launch)
    with ExitStack() as stack:
        stack.enter_context(restored_environment())
        # A setting that the user's environment gives counts more than ours.
        for key, value in {**SETTINGS, **(settings or {})}.items():
            os.environ.setdefault(key, value)
        # A container's user may have neither HOME nor an entry in passwd, and Ray asks for a home when it is imported.
        if os.path.expanduser("~") == "~":
            os.environ["HOME"] = tempfile.gettempdir()
        # A trial of a sweep lives in a worker of its cluster. Asked without loading Ray, which reads its settings when it is.
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            yield address
            return

        # The token must be in the environment before Ray is told to look for it.
        apply_token(create=address is None)
        _reset_token()
        logging.getLogger("ray").setLevel(logging.ERROR)
        options: dict[str, Any] = {"address": address}
        if address is None:
            own = tempfile.TemporaryDirectory(
                prefix="db", dir=choose_ray_folder(BYTES_OF_NAME), ignore_cleanup_errors=True
            )
            folder = os.environ["RAY_TMPDIR"] = stack.enter_context(own)
            cpus = max(num_cores(), round(launch.most_workers * launch.cpus_per_worker))
            options = {
                "address": "local",
                "num_cpus": cpus,
                "include_dashboard": False,
                # Ray counts whole GPUs; None lets it.
                "num_gpus": count_mig_parts() or None,
                "_temp_dir": folder,
                "_metrics_export_port": metrics_port,
            }
        stack.enter_context(_connect(options))
        yield address


@contextmanager
def _connect(options: dict[str, Any]) -> Iterator[None]:
    """Ray as `ray.init` gives it, with its failures explained; at the end everything that it started is ended."""
    import ray

    # Of this process's children only those that Ray starts from here on are its own to end.
    others = set(psutil.Process().children(recursive=True))
    try:
        try:
            if options["address"] != "local":
                options["address"] = _check_address(options["address"])
            with hidden_from_children():
                ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
            _let_ray_kill()
        except Exception as error:  # of any kind: Ray raises bare ones, where its disk is full say
            raise UserError(_explain_cluster_error(options["address"], error)) from None
        yield
    finally:
        processes = set(psutil.Process().children(recursive=True)) - others
        ray.shutdown()
        end_processes(processes, SECONDS_TO_END)


def _let_ray_kill() -> None:
    """Ray ends what it started by SIGTERM, which none of it hears, and would wait a second for each before it kills."""
    # A private name, for no public call ends them without.
    from ray._private.worker import _global_node

    for started in _global_node.all_processes.values():
        for one in started:
            one.process.terminate = one.process.kill


def _explain_cluster_error(address: str, error: Exception) -> str:
    reason = reason_of(error)[:300]
    if address == "local":
        return explain_full_folder() or (
            f"Ray cannot be started on this machine ({reason}). `distbranch doctor` shows what is wrong with it."
        )
    if "token" in reason.lower():
        return f"{explain_token(address)} Or leave launch.address empty to start a cluster here."
    return (
        f"The Ray cluster {address} cannot be used ({reason}). Check that it runs there and that this machine is one of its "
        "nodes (else use `distbranch submit ray --address http://HEAD:8265`), or leave launch.address empty."
    )


def _check_address(address: str) -> str:
    """The address as HOST:PORT, when somebody answers there who knows us; Ray itself would try for minutes."""
    # Private calls, for no public one does the same: `ray.init` finds `auto` by itself, but only while it connects, and then it
    # asks a port where nobody answers (45 s each time), or a token that is wrong, twenty times before it fails.
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # of its C++ part

    if address == "auto" and is_node_address(os.environ.get(VARIABLE, "")):
        address = os.environ[VARIABLE]
    with hide_ray_variables():
        found = str(canonicalize_bootstrap_address_or_die(address))
    host, _, port = found.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    GcsClient(address=found)  # raises at once where a token is wanted
    return found


def _reset_token() -> None:
    """Ray remembers the token that it found first, and when it is loaded whether one is wanted."""
    # Private calls, for no public one reads the environment again once Ray is loaded.
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


# ---- resources


def uses_gpu(launch: LaunchConfig) -> bool:
    """Whether the workers run on GPUs: as asked, or if there are enough of them."""
    if launch.device != "auto":
        return launch.device == "cuda"
    return (
        max_workers(list_alive_nodes(), get_worker_resources(launch, gpu=True))
        >= launch.least_workers
    )


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


def max_workers(nodes: Sequence[Node], each: Mapping[str, float]) -> int:
    """How many workers fit, node by node: a worker is never divided."""
    tiny = 1e-9  # 0.3 goes three times into 0.9, whatever floating point says
    total = 0
    for node in nodes:
        there = node["Resources"]
        total += min(int(there.get(name, 0) / amount + tiny) for name, amount in each.items())
    return total


def check_resources(launch: LaunchConfig, report: Report, should_stop: Callable[[], bool]) -> None:
    """Ray waits for ever for what a cluster will never have: say so at once, or after `launch.wait_for_nodes_min`.

    Raises:
        UserError: with what is there and what was asked.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    each = get_worker_resources(launch, gpu=uses_gpu(launch))
    least, most = launch.least_workers, launch.most_workers
    number = f"{least} to {most}" if most > least else f"{most}"
    asked = f"{number} worker(s) with {_format_amounts(each)} each"
    nodes = list_alive_nodes()
    if max_workers(nodes, each) < most and launch.wait_for_nodes_min:
        report({"kind": "warning", "message": f"Waiting for nodes: {asked} do not fit yet."})
        # An autoscaler adds nodes only for what somebody asks for; nodes that people add by hand are found all the same.
        request_resources(bundles=[each] * most)
        for _ in look_until(60 * launch.wait_for_nodes_min, SECONDS_BETWEEN_LOOKS):
            nodes = list_alive_nodes()
            if should_stop() or max_workers(nodes, each) >= most:
                break
        request_resources(bundles=[])  # from now on the run itself holds them
    if should_stop():
        return
    found = max_workers(nodes, each)
    if found < least:
        amounts = {name: [node["Resources"].get(name, 0) for node in nodes] for name in each}
        total = {name: sum(of_nodes) for name, of_nodes in amounts.items()}
        largest = {name: max(of_nodes, default=0) for name, of_nodes in amounts.items()}
        raise UserError(
            f"The run asks for {asked}, but the Ray cluster has room for {found} of them: "
            f"it has {_format_amounts(total)} on {len(nodes)} node(s), at most {_format_amounts(largest)} on one. "
            "Lower launch.workers, launch.cpus_per_worker or launch.gpus_per_worker, or add nodes (launch.wait_for_nodes_min waits for "
            "them)."
        )

    # What others use now comes free some time, so this is no error.
    free = ray.available_resources()
    busy = [name for name, amount in each.items() if free.get(name, 0) < amount * least]
    if busy:
        report(
            {
                "kind": "warning",
                "message": f"The cluster is busy ({' and '.join(busy)}): Ray waits for room.",
            }
        )


def _format_amounts(amounts: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in amounts.items())


# ---- storage


def check_storage(config: Config, should_stop: Callable[[], bool]) -> None:
    """Every node on which a worker may come has this package, and sees the run directory and the data.

    Raises:
        UserError: naming the node that does not, and what it lacks.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    launch = config.launch
    each = get_worker_resources(launch, gpu=uses_gpu(launch))
    marker = config.run_directory / f".seen-{secrets.token_hex(8)}"
    marker.touch()
    try:
        # Ask all nodes at once. A look takes no CPU, so that it need not wait for whoever uses them.
        looks = {}
        for node in list_alive_nodes():
            if max_workers([node], each):
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                look_at = ray.remote(check_node).options(
                    num_cpus=0, max_retries=0, scheduling_strategy=there
                )
                looks[look_at.remote(config.run_url or str(marker), config.data.paths)] = node

        # Wait for their answers, in turns in which a signal is heard.
        silent = list(looks)
        for _ in look_until(60 * launch.timeout_min, 0):
            if should_stop():
                return
            if not silent:
                break
            _, silent = ray.wait(silent, num_returns=len(silent), timeout=SECONDS_BETWEEN_LOOKS)

        # The first problem ends the run; a node that is silent is one too.
        for look, node in looks.items():
            problem = f"gave no answer within launch.timeout_min={launch.timeout_min:g}."
            if look not in silent:
                try:
                    problem = ray.get(look)
                except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
                    continue  # the node has left since it was listed, so no worker comes there
                except ray.exceptions.RayError as error:
                    problem = _explain_import_error(error)
            if problem:
                raise UserError(
                    f"The node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}) {problem}"
                )
    finally:
        marker.unlink(missing_ok=True)


def check_node(place: str, data: Sequence[str]) -> str:
    """Run on every node: what is missing there, as the end of a sentence; empty if nothing is.

    Args:
        place: a file of the run directory with a name that no other has, or the URL of the run directory.
        data: folders and URLs of data sets.
    """
    folder = os.path.dirname(place)
    try:
        if is_remote(place):
            RemoteRun(place, Path()).check_access()
        elif not os.path.exists(place):
            return f"does not see the run directory {folder} of this machine. {STORAGE_ADVICE}"
        else:
            tempfile.TemporaryFile(dir=folder).close()
    except UserError as error:
        return f"says: {error}"
    except OSError as error:
        return f"cannot write to the run directory {folder} ({error.strerror}). {STORAGE_ADVICE}"
    for path in data:
        if not is_remote(path) and not os.path.exists(os.path.join(path, DATASET_FILE)):
            return (
                f"does not see the data set {path}. Give a data.path that all nodes see, or a URL."
            )
    return ""


def _explain_import_error(error: Exception) -> str:
    # A missing module stands somewhere above the last line, in the error's cause.
    missing = re.search("No module named .*", str(error))
    reason = missing[0] if missing else find_last_line(error, type(error).__name__)
    return f"cannot run distbranch ({reason[:200]}). Install the same versions on every node, or submit the source with the job."

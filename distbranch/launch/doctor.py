"""What this machine offers a run, and what is wrong with it: one finding per line, with what to do."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from distbranch.config import LaunchConfig
from distbranch.engine.process_group import has_bf16, num_cores
from distbranch.engine.run_start import read_package_version
from distbranch.errors import UserError
from distbranch.launch.on_ray.address import VARIABLE, cluster_address, is_dashboard_address
from distbranch.launch.ray_folder import choose_ray_folder, find_existing_folder, find_problem

GIB = 2**30
SMALLEST_SHARED_MEMORY = GIB  # a container's default of 64 MiB fills with the first batches of loading processes
SMALLEST_DISK = 2 * GIB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `advice` is empty where all is well."""

    what: str
    found: str
    advice: str = ""


def check_machine(storage: Path) -> list[Finding]:
    """Look at versions, devices, memory, shared memory, ports and the storage of runs."""
    return [
        *_check_versions(),
        *_check_devices(),
        *_check_memory(),
        *_check_network(),
        *_check_ray(),
        *_check_storage(storage),
    ]


def _check_versions() -> Iterator[Finding]:
    for text in _list_requirements():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = read_package_version(requirement.name)
        if found is None:
            yield Finding(requirement.name, "absent", f"pip install '{text.split(';')[0].strip()}'")
        elif not requirement.specifier.contains(found.split("+")[0], prereleases=True):
            yield Finding(requirement.name, found, f"needs {requirement.specifier}: pip install '{text}'")
        else:
            yield Finding(requirement.name, found)


def _list_requirements() -> list[str]:
    try:
        return requires("distbranch") or []
    except PackageNotFoundError:  # run from a source tree that is not installed
        return []


def _check_devices() -> Iterator[Finding]:
    cores = num_cores()
    threads = os.environ.get("OMP_NUM_THREADS")
    limit = f", OMP_NUM_THREADS={threads}" if threads else ""
    yield Finding("cores", f"{cores}{limit}")
    known = "in hardware" if has_bf16(torch.device("cpu")) else "not in hardware: keep train.precision=fp32"
    yield Finding("bf16 on this processor", known)
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        advice = "This torch was built for CUDA but finds no GPU: check the driver with nvidia-smi." if built else ""
        found = "none" if built else "none (a CPU build of torch)"
        yield Finding("GPUs", found, advice)
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"GPU {index}", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB")


def _check_memory() -> Iterator[Finding]:
    available = psutil.virtual_memory().available
    few = "Close other programs, or lower train.batch_size and data.prefetch." if available < GIB else ""
    yield Finding("free memory", f"{available / GIB:.1f} GiB", few)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        small = free < SMALLEST_SHARED_MEMORY
        advice = "Give the container more (docker run --shm-size=8g), or use data.workers=0." if small else ""
        yield Finding("shared memory", f"{free / GIB:.1f} GiB free", advice)


def _check_network() -> Iterator[Finding]:
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        address = ""
    loopback = address.startswith("127.")  # as /etc/hosts of Debian has it, and no other machine reaches it
    advice = "" if address else f"Add {host} to /etc/hosts."
    found = f"{host} is {address or 'not resolved'}"
    if loopback:
        found += ": enough for one machine; between several set GLOO_SOCKET_IFNAME to their network interface"
    yield Finding("host name", found, advice)
    for port, use in ((6379, "the head of a Ray cluster"), (8265, "Ray's dashboard and jobs")):
        yield Finding(f"port {port}", _describe_port(port, use))


def _describe_port(port: int, use: str) -> str:
    with socket.socket() as probe:
        probe.settimeout(1)
        answers = probe.connect_ex(("127.0.0.1", port)) == 0
    if answers:
        return f"something answers: {use}, perhaps (launch.address)"
    return f"free ({use} is not running here)"


def _check_ray() -> Iterator[Finding]:
    """The cluster that RAY_ADDRESS names, and the folder in which one that is started here keeps its files."""
    variable = os.environ.get(VARIABLE, "").strip()
    try:
        address = cluster_address(LaunchConfig())
    except UserError as error:
        use = f"{VARIABLE}={variable}"
        if is_dashboard_address(variable):
            use += ": `submit ray` submits there"
        yield Finding("Ray cluster", use, str(error))
    else:
        yield Finding("Ray cluster", f"{VARIABLE}={address}: runs join it" if address else "runs start one here")
    try:
        folder = choose_ray_folder()
    except UserError as error:
        yield Finding("files of Ray", "no folder will do", str(error))
        return
    found = f"in {folder}"
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    given = Path(os.environ.get(variable) or folder)
    if given.absolute() != folder:
        found += f", for {variable}={given} {find_problem(given)}"
    yield Finding("files of Ray", found)


def _check_storage(folder: Path) -> Iterator[Finding]:
    existing = find_existing_folder(folder.absolute())
    # A checkpoint is written aside and renamed, which some network storage cannot do.
    try:
        with tempfile.TemporaryDirectory(dir=existing) as trial:
            source, target = Path(trial) / "a", Path(trial) / "b"
            source.write_bytes(b"x")
            source.rename(target)
        advice = ""
    except OSError as error:
        advice = f"It cannot be written ({error.strerror}). Give another run.directory."
    usage = shutil.disk_usage(existing)
    if not advice and usage.free < SMALLEST_DISK:
        advice = "Make room: checkpoints and packed data need more."
    yield Finding(f"runs in {folder}", f"{usage.free / GIB:.0f} GiB free", advice)


def raise_if_wrong(findings: list[Finding]) -> None:
    """End `distbranch doctor` with exit code 1 where something is wrong.

    Raises:
        UserError: with the number of findings that need something done.
    """
    wrong = [finding for finding in findings if finding.advice]
    if wrong:
        raise UserError(f"{len(wrong)} finding(s) need something done: {', '.join(finding.what for finding in wrong)}.")

"""What this machine offers a run, and what is wrong with it: one finding per line, with what to do."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from distbranch.config import LaunchConfig
from distbranch.engine.cores import num_cores
from distbranch.engine.process_group import has_bf16
from distbranch.engine.run_start import read_package_version
from distbranch.errors import UserError
from distbranch.launch.on_ray.address import VARIABLE, cluster_address, is_dashboard_address
from distbranch.launch.ray_folder import choose_ray_folder, find_existing_folder, find_problem

GIB = 2**30
SMALLEST_SHARED_MEMORY = (
    GIB  # a container's default of 64 MiB fills with the first batches of loading processes
)
SMALLEST_DISK = 2 * GIB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `advice` is empty where all is well."""

    what: str
    found: str
    advice: str = ""


def check_machine(storage: Path) -> list[Finding]:
    """Look at versions, devices, memory, shared memory, ports and the storage of runs."""
    checks = (
        _check_versions(),
        _check_devices(),
        _check_memory(),
        _check_network(),
        _check_ray(),
        _check_storage(storage),
    )
    return [finding for findings in checks for finding in findings]


def _check_versions() -> Iterator[Finding]:
    try:
        texts = requires("distbranch") or []
    except PackageNotFoundError:  # run from a source tree that is not installed
        texts = []
    for text in texts:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found = read_package_version(requirement.name) or "absent"
            fits = found != "absent" and requirement.specifier.contains(
                found.split("+")[0], prereleases=True
            )
            yield Finding(
                requirement.name,
                found,
                "" if fits else f"pip install '{text.split(';')[0].strip()}'",
            )


def _check_devices() -> Iterator[Finding]:
    yield Finding("cores", str(num_cores()))
    # torchrun and Ray set the variable where nobody did, so it is nobody's word.
    given = os.environ.get("OMP_NUM_THREADS")
    instead = "" if given is None else f", not OMP_NUM_THREADS={given}"
    yield Finding(
        "threads of a rank",
        f"launch.threads; if empty, cores / ranks of the machine ({num_cores()} for one rank){instead}",
    )
    known = (
        "in hardware"
        if has_bf16(torch.device("cpu"))
        else "not in hardware: keep train.precision=fp32"
    )
    yield Finding("bf16 on this processor", known)
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"GPU {index}", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB")
    if not torch.cuda.is_available():
        # A laptop without a GPU often has the torch that was built for CUDA, and nothing is wrong with it.
        is_expected = torch.version.cuda and shutil.which("nvidia-smi")
        advice = (
            "This machine has a driver of NVIDIA but torch finds no GPU: see what nvidia-smi says."
        )
        yield Finding("GPUs", f"none (torch {torch.__version__})", advice if is_expected else "")


def _check_memory() -> Iterator[Finding]:
    available = psutil.virtual_memory().available
    advice = "Close other programs, or lower train.batch_size and data.prefetch."
    yield _compare_room("free memory", available, GIB, advice)
    if os.path.isdir("/dev/shm"):
        advice = "Give the container more (docker run --shm-size=8g), or use data.workers=0."
        yield _compare_room(
            "shared memory", shutil.disk_usage("/dev/shm").free, SMALLEST_SHARED_MEMORY, advice
        )


def _compare_room(what: str, found: int, least: int, advice: str) -> Finding:
    return Finding(what, f"{found / GIB:.1f} GiB free", advice if found < least else "")


def _check_network() -> Iterator[Finding]:
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
        note = ""
        if address.startswith(
            "127."
        ):  # as /etc/hosts of Debian has it, and no other machine reaches it
            note = ": enough for one machine; torchrun on several needs GLOO_SOCKET_IFNAME, their network interface"
        yield Finding("host name", f"{host} is {address}{note}")
    except OSError:
        yield Finding("host name", f"{host} is not resolved", f"Add {host} to /etc/hosts.")
    for port, use in ((6379, "the head of a Ray cluster"), (8265, "Ray's dashboard and jobs")):
        with socket.socket() as probe:
            probe.settimeout(1)
            state = "free" if probe.connect_ex(("127.0.0.1", port)) else "in use"
        yield Finding(f"port {port}", f"{state} ({use})")


def _check_ray() -> Iterator[Finding]:
    """The cluster that RAY_ADDRESS names, and the folder in which one that is started here keeps its files."""
    variable = os.environ.get(VARIABLE, "").strip()
    try:
        address = cluster_address(LaunchConfig())
        yield Finding(
            "Ray cluster",
            f"{VARIABLE}={address}: runs join it" if address else "runs start one here",
        )
    except UserError as error:
        use = ": `submit ray` submits there" if is_dashboard_address(variable) else ""
        yield Finding("Ray cluster", f"{VARIABLE}={variable}{use}", str(error))
    try:
        folder = choose_ray_folder()
    except UserError as error:
        yield Finding("files of Ray", "no folder will do", str(error))
        return
    given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or str(folder)
    passed_over = (
        "" if Path(given).absolute() == folder else f", for {given} {find_problem(Path(given))}"
    )
    yield Finding("files of Ray", f"in {folder}{passed_over}")


def _check_storage(folder: Path) -> Iterator[Finding]:
    existing = find_existing_folder(folder.absolute())
    finding = _compare_room(
        f"runs in {folder}",
        shutil.disk_usage(existing).free,
        SMALLEST_DISK,
        "Make room: checkpoints and packed data need more.",
    )
    # A checkpoint is written aside and renamed, which some network storage cannot do.
    try:
        with tempfile.TemporaryDirectory(dir=existing) as trial:
            Path(trial, "a").touch()
            Path(trial, "a").rename(Path(trial, "b"))
    except OSError as error:
        finding = replace(
            finding, advice=f"It cannot be written ({error.strerror}). Give another run.directory."
        )
    yield finding


def raise_if_wrong(findings: list[Finding]) -> None:
    """End `distbranch doctor` with exit code 1 where something is wrong.

    Raises:
        UserError: with the number of findings that need something done.
    """
    wrong = [finding for finding in findings if finding.advice]
    if wrong:
        raise UserError(
            f"{len(wrong)} finding(s) need something done: {', '.join(finding.what for finding in wrong)}."
        )

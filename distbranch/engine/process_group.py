"""How this process takes its place among the ranks: who started it, its device, its threads and its precision."""

import ctypes
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distbranch.config import LaunchConfig
from distbranch.engine.cores import num_cores
from distbranch.engine.distributed import NotAwaitedError, Ranks, wait_for_result
from distbranch.errors import StoppedEarly, UserError

logger = logging.getLogger("distbranch")
# What decides how numbers are rounded, beside the number of ranks: the precision (bf16 or fp32), the threads of a rank (or
# the different numbers) and the device (cpu or cuda). A run that is resumed with others is not refused, but after thousands
# of steps its tree may be another one: so all that were used stand in its checkpoints.
Rounding = Mapping[str, Any]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST_THRESHOLD = 2**31 - 1
SECONDS_TO_LET_GO = 0.2
TINY = 1e-9  # three ranks of 0.333... share a GPU, whatever floating point says
# What torchrun sets, and what of it several ranks need.
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
OF_SEVERAL = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LARGEST_PORT = 65_535
# How NCCL and CUDA tell that ranks were started wrongly, as against one that is lost.
MISPLACED = (
    "Duplicate GPU detected",
    "ncclInvalidUsage",
    "ncclInvalidArgument",
    "invalid device ordinal",
    "have NCCL built in",
)


@contextmanager
def join_ranks(
    launch: LaunchConfig, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Ranks]:
    """Take this process's place among the ranks.

    A process group that stands already (Ray Train's) is used, and so is the GPU that whoever made it has chosen; under torchrun one is
    made from its environment, when every rank has its GPU; else this process is the only rank.

    Raises:
        StoppedEarly: asked to stop before all ranks had come.
        UserError: not all came in time; or they are placed so that they cannot work together, such as two of them on one GPU
            without a word of it.
    """
    timeout = timedelta(minutes=launch.timeout_min)
    device = _choose_device(launch)
    made_here = not dist.is_initialized() and (num_started_ranks() or 1) > 1
    if made_here:
        wait_for_ranks(lambda: _make_group(launch, device, timeout), launch, should_stop)
    rank, world_size = 0, 1
    if dist.is_initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()
    _keep_freed_memory()
    # More OpenMP threads than cores make every rank wait for the others: 3 to 7 times slower on contended cores.
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    torch.set_num_threads(launch.threads or max(1, num_cores() // num_local))
    host_group = None
    if world_size > 1 and dist.get_backend() == "nccl":
        host_group = dist.new_group(backend="gloo", timeout=timeout)
    try:
        with _fast_kernels(device):
            yield Ranks(rank, world_size, device, host_group, timeout)
    finally:
        if made_here:
            # A thread of gloo that has just finished needs the interpreter's lock to let go of its tensors, and the end of
            # the group, which holds that lock, waits for the thread: without a moment between them both wait for ever.
            time.sleep(SECONDS_TO_LET_GO)
            dist.destroy_process_group()


def _make_group(launch: LaunchConfig, device: torch.device, timeout: timedelta) -> None:
    if device.type == "cpu" or not uses_nccl(launch):
        dist.init_process_group("gloo", timeout=timeout)
        return
    torch.cuda.set_device(device)  # for this thread, in which the group is made
    # With its GPU named NCCL connects now, where it can be told what is wrong, and never guesses the GPU from the rank.
    dist.init_process_group("nccl", timeout=timeout, device_id=device)


def wait_for_ranks(
    meet: Callable[[], None], launch: LaunchConfig, should_stop: Callable[[], bool]
) -> None:
    """Call `meet`, which returns when all ranks have come, in a thread: it has to choose its GPU there.

    Raises:
        StoppedEarly: asked to stop before that; nothing had begun.
        UserError: not all came in time, nobody answers where they meet, or they are placed wrongly.
    """
    try:
        wait_for_result(meet, should_stop)
    except NotAwaitedError:
        stopped = StoppedEarly(
            "Stopped while this rank waited for the others, before a new step was trained. The same command continues."
        )
        stopped.by_one_rank = True
        raise stopped from None
    except RuntimeError as error:
        message = describe_misplacement(error)
        if message is not None:
            raise UserError(message) from None
        if not isinstance(error, dist.DistError):
            raise
        found = {name: os.environ.get(name) for name in OF_SEVERAL}
        raise UserError(
            f"Rank {found['RANK']} should meet {found['WORLD_SIZE']} ranks (WORLD_SIZE) at {found['MASTER_ADDR']}:{found['MASTER_PORT']}, "
            f"but within {launch.timeout_min:g} minutes (launch.timeout_min) not all came ({str(error).splitlines()[0][:200]}). Start all "
            "of them, and check that they reach that address."
        ) from None


def describe_misplacement(error: Exception) -> str | None:
    """One sentence about ranks that were placed wrongly, which no restart mends; None if the error is of another kind."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    telling = [line for word in MISPLACED for line in lines if word in line]
    if not telling:
        return None
    return (
        f"The ranks on {socket.gethostname()} cannot use its GPUs together ({telling[0]}): each needs one of its own, and this one sees "
        f"{torch.cuda.device_count()}. Start one rank per GPU, or let ranks share them with launch.gpus_per_worker=0.5 (or another "
        "part of one)."
    )


def num_started_ranks() -> int | None:
    """How many ranks torchrun, or whoever speaks its language, has started; None if nobody has.

    Raises:
        UserError: its variables do not fit together: what is set, what is wrong with it, and what to do.
    """
    names = (*NUMBERS, "MASTER_ADDR")
    found = {name: os.environ[name].strip() for name in names if name in os.environ}
    problem = _find_misfit(found)
    if problem is not None:
        named = ", ".join(f"{name}={value}" for name, value in found.items())
        raise UserError(
            f"The environment says that this is one of several ranks, but {problem} (found {named}). Start the ranks with "
            f"torchrun, or, for a process by itself, `unset {' '.join(found)}`."
        )
    world_size = int(found.get("WORLD_SIZE", "1"))
    return world_size if world_size > 1 or dist.is_torchelastic_launched() else None


def _find_misfit(found: Mapping[str, str]) -> str | None:
    """What is wrong with the variables of a launcher, of which other programs may have left some; None if they fit."""
    numbers: dict[str, int] = {}
    for name, value in found.items():
        if not value:
            return f"{name} is empty"
        if name in NUMBERS:
            if not value.isdecimal():
                return f"{name} should be a whole number"
            numbers[name] = int(value)
    world_size = numbers.get("WORLD_SIZE", 1)
    needed: tuple[str, ...] = ()
    if world_size > 1:
        needed = OF_SEVERAL
    elif "RANK" in found:
        needed = ("WORLD_SIZE",)
    missing = [name for name in needed if name not in found]
    if missing:
        return f"there is no {' and no '.join(missing)}"
    local_size = numbers.get("LOCAL_WORLD_SIZE", world_size)
    if world_size < 1:
        return "WORLD_SIZE should be 1 or more"
    limits = {
        "RANK": (0, world_size - 1),
        "LOCAL_WORLD_SIZE": (1, world_size),
        "LOCAL_RANK": (0, local_size - 1),
        "MASTER_PORT": (1, LARGEST_PORT),
    }
    for name, (least, most) in limits.items():
        if name in numbers and not least <= numbers[name] <= most:
            return f"{name} should be from {least} to {most}"
    return None


def num_local_ranks() -> int:
    """How many ranks run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_started_ranks() or 1))


def uses_nccl(launch: LaunchConfig) -> bool:
    """Whether ranks on GPUs talk by NCCL, which refuses two of them on one GPU, also in parts of it by MIG; those talk by gloo."""
    return launch.gpus_per_worker == 1 and count_mig_parts() == 0


def count_mig_parts() -> int:
    """How many parts of GPUs, as MIG makes them, this process was given; of several CUDA shows it the first alone.

    Example:
        >>> os.environ["CUDA_VISIBLE_DEVICES"] = "MIG-1c2d,MIG-9f3a"
        >>> count_mig_parts()
        2
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return sum(device.strip().startswith("MIG-") for device in given)


def wants_gpu(launch: LaunchConfig) -> bool:
    """Whether the ranks run on GPUs.

    Raises:
        UserError: GPUs are asked for and there are none.
    """
    if launch.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"launch.device=cuda needs a GPU, and torch finds none on this machine ({socket.gethostname()}). "
            "Use launch.device=cpu, or install a CUDA build of torch and a driver (`distbranch doctor` shows what is there)."
        )
    return launch.device != "cpu" and torch.cuda.is_available()


def _choose_device(launch: LaunchConfig) -> torch.device:
    """The CPU, or this rank's GPU, chosen before anything is sent.

    The ranks of a machine fill its GPUs one after the other, `1 / gpus_per_worker` of them on each.
    """
    if not wants_gpu(launch):
        return torch.device("cpu")
    if dist.is_initialized():
        return torch.device("cuda", torch.cuda.current_device())
    num_gpus = torch.cuda.device_count()
    number = int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")))
    num_local = max(num_local_ranks(), number + 1)
    ranks_per_gpu = int(1 / launch.gpus_per_worker + TINY)
    if num_gpus == 1 and ranks_per_gpu == 1:
        number = 0  # a launcher may let every process see its own GPU only
    elif num_gpus * ranks_per_gpu < num_local:
        raise UserError(
            f"{num_local} ranks on {socket.gethostname()} with launch.gpus_per_worker={launch.gpus_per_worker:g} need "
            f"{math.ceil(num_local / ranks_per_gpu)} GPU(s), and it has {num_gpus}. Start fewer ranks there, or let more of them share "
            "a GPU with a smaller launch.gpus_per_worker."
        )
    device = torch.device("cuda", number // ranks_per_gpu)
    torch.cuda.set_device(device)
    return device


@contextmanager
def _fast_kernels(device: torch.device) -> Iterator[None]:
    """On a GPU products of fp32 in TF32, as convolutions are by default, and cuDNN's fastest kernel for every shape.

    Margins' signs stay exact (1 and -1 are TF32 numbers, and sums are of fp32). On a CPU nothing is changed.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory: else every activation is mapped and zeroed anew at every step, a sixth of a CPU step."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST_THRESHOLD)


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere bf16 is emulated, and slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    processor = Path("/proc/cpuinfo")
    flags = processor.read_text() if processor.exists() else ""
    return "amx_bf16" in flags or "avx512_bf16" in flags


def choose_rounding(
    precision: str, ranks: Ranks, before: Sequence[Rounding] = ()
) -> list[Rounding]:
    """Those with which the run was trained so far, oldest first, and the one of this start, which is the last.

    Args:
        precision: `train.precision`.
        ranks: this process among the others; all must call it.
        before: those of the checkpoint from which the run is resumed, if they were recorded.

    Raises:
        SharedError: bf16 on a device that cannot compute in it at all.
    """
    begun_with = before[0] if before else None
    if precision == "auto":  # as the run was begun, else bf16 if all ranks have it in hardware
        in_hardware = "bf16" if all(ranks.gather(has_bf16(ranks.device))) else "fp32"
        precision = in_hardware if begun_with is None else str(begun_with["precision"])
        if precision != in_hardware and ranks.is_first:
            note = " (emulated and slow here)" if precision == "bf16" else ""
            logger.warning(
                "train.precision=auto would be %s on this hardware; the run was begun with %s and keeps it%s.",
                in_hardware,
                precision,
                note,
            )
    if precision == "bf16":
        ranks.raise_on_all_ranks(_describe_missing_bf16(ranks.device))
    threads = sorted(set(ranks.gather(torch.get_num_threads())))
    now = {"precision": precision, "threads": threads[0], "device": ranks.device.type}
    if len(threads) > 1:
        now["threads"] = threads
    if begun_with is not None and now != begun_with and ranks.is_first:
        changed = [
            f"{key} {begun_with[key]} -> {value}"
            for key, value in now.items()
            if value != begun_with[key]
        ]
        logger.warning(
            "The run is resumed with another rounding than it was begun with (%s), so from here on its numbers are not those of a "
            "run without a break. `launch.threads` and `launch.device` restore it.",
            ", ".join(changed),
        )
    return list(before) if before and before[-1] == now else [*before, now]


def _describe_missing_bf16(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.cuda.is_bf16_supported():
        return None
    return (
        f"The forward pass of this run is in bf16, and {torch.cuda.get_device_name(device)} cannot compute in it. Use another GPU, "
        "or train with train.precision=fp32 under another run.name."
    )

"""The ranks of a run: where this process stands, and the few collectives that training needs.

One process without a process group is the case of one rank; every function below then returns at once.
"""

import ctypes
import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from distbranch.config import LaunchConfig
from distbranch.engine.waiting import NotAwaitedError, awaited
from distbranch.errors import SharedError, StoppedEarly, UserError

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST_THRESHOLD = 2**31 - 1
SECONDS_TO_LET_GO = 0.2
RankGroup = Any  # torch.distributed.ProcessGroup; its type differs between builds of torch


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run.

    `host_group` carries small host tensors and objects: the default group on CPU, a gloo group beside NCCL on GPUs.
    """

    rank: int
    world_size: int
    device: torch.device
    host_group: RankGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which decides, writes and reports."""
        return self.rank == 0

    def start_sum(self, tensor: torch.Tensor, *, on_host: bool = False) -> "Pending":
        """Begin to add `tensor` over all ranks, in place; `.wait()` before reading it."""
        if self.world_size == 1:
            return Pending(tensor, None)
        group = self.host_group if on_host else None
        return Pending(tensor, dist.all_reduce(tensor, group=group, async_op=True))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add `tensor` over all ranks, in place."""
        return self.start_sum(tensor).wait()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` (a small picklable object) on every rank."""
        if self.world_size == 1:
            return value
        box = [value if self.is_first else None]
        dist.broadcast_object_list(box, src=0, group=self.host_group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every rank, by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.host_group)
        return values

    def broadcast_tensors(self, tensors: list[torch.Tensor]) -> None:
        """Overwrite `tensors` with those of rank 0, as one flat message per data type."""
        if self.world_size == 1:
            return
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            dist.broadcast(flat, src=0)
            for tensor, part in zip(same, torch.split(flat, [tensor.numel() for tensor in same]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def on_first(self, work: Callable[[], T]) -> T:
        """The result of `work` on rank 0, given to every rank; all must call it.

        Raises:
            SharedError: `work` met a UserError, or storage that failed.
        """
        value: Any = None
        message = None
        if self.is_first:
            try:
                value = work()
            except UserError as error:
                message = self.with_place(str(error))
            except OSError as error:
                message = self.with_place(storage_message(error))
        value, message = self.broadcast((value, message))
        if message is not None:
            raise SharedError(message)
        result: T = value
        return result

    def raise_together(self, message: str | None) -> None:
        """Stop all ranks with one message if any rank gives one.

        Raises:
            SharedError: with the message of the lowest failing rank, its number and its host.
        """
        messages = self.gather(None if message is None else self.with_place(message))
        found = [text for text in messages if text is not None]
        if found:
            raise SharedError(found[0])

    def with_place(self, message: str) -> str:
        """`message`, and which of several ranks on which host says so."""
        return f"{message} ({self.place})" if self.world_size > 1 else message

    @property
    def place(self) -> str:
        """This rank and its host, for people."""
        return f"rank {self.rank} on {socket.gethostname()}"


def storage_message(error: OSError) -> str:
    """One sentence about a file that could not be written or read."""
    return (
        f"{error.filename or 'A file of the run'} cannot be written or read ({error.strerror or error}). "
        "Make room or mend the storage, then run the same command again; the checkpoints are intact."
    )


@dataclass
class Pending:
    """A sum over all ranks that is under way."""

    tensor: torch.Tensor
    work: Any | None

    def wait(self) -> torch.Tensor:
        """The finished sum."""
        if self.work is not None:
            self.work.wait()
            self.work = None
        return self.tensor


@contextmanager
def join_ranks(launch: LaunchConfig, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Ranks]:
    """Take this process's place among the ranks.

    A process group that stands already (Ray Train's) is used; under torchrun one is made from its environment;
    else this process is the only rank.

    Raises:
        StoppedEarly: asked to stop before all ranks had come.
        UserError: not all came in time.
    """
    timeout = timedelta(minutes=launch.timeout_min)
    made_here = False
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        backend = "nccl" if wants_gpu(launch) else "gloo"
        wait_for_ranks(lambda: dist.init_process_group(backend, timeout=timeout), launch, should_stop)
        made_here = True
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = _device_of(launch, rank)
    _set_threads(launch, world_size)
    host_group = dist.new_group(backend="gloo", timeout=timeout) if world_size > 1 and device.type == "cuda" else None
    try:
        yield Ranks(rank, world_size, device, host_group)
    finally:
        if made_here:
            # A thread of gloo that has just finished needs the interpreter's lock to let go of its tensors, and the end of
            # the group, which holds that lock, waits for the thread: without a moment between them both wait for ever.
            time.sleep(SECONDS_TO_LET_GO)
            dist.destroy_process_group()


def wait_for_ranks(meet: Callable[[], None], launch: LaunchConfig, should_stop: Callable[[], bool]) -> None:
    """Call `meet`, which returns when all ranks have come, in a thread: it has to choose its GPU there.

    Raises:
        StoppedEarly: asked to stop before that; nothing had begun.
        UserError: not all came in time, or nobody answers where they meet.
    """
    try:
        awaited(meet, should_stop)
    except NotAwaitedError:
        stopped = StoppedEarly(
            "Stopped while this rank waited for the others, before a new step was trained. The same command continues."
        )
        stopped.by_one_rank = True
        raise stopped from None
    except dist.DistError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"Rank {os.environ.get('RANK')} should meet {os.environ.get('WORLD_SIZE')} ranks (WORLD_SIZE) at {place}, but within "
            f"{launch.timeout_min:g} minutes (launch.timeout_min) not all came ({str(error).splitlines()[0][:200]}). Start all of "
            "them, and check that they reach that address."
        ) from None


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


def fingerprint(tree_json: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """One hash over an architecture and named tensors (weights, optimiser slots); equal only if every bit is."""
    digest = hashlib.sha256(tree_json.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def verify_equal(ranks: Ranks, what: str, own: str) -> str:
    """Prove that all ranks hold the same fingerprint.

    Raises:
        SharedError: naming those that differ from rank 0.
    """
    every = ranks.gather((own, socket.gethostname()))
    different = [f"rank {rank} on {host}" for rank, (other, host) in enumerate(every) if other != every[0][0]]
    if different:
        raise SharedError(
            f"At {what} all ranks should hold the same tree and weights, but {', '.join(different)} "
            f"{'differs' if len(different) == 1 else 'differ'} from rank 0. Nothing was saved since the last checkpoint; "
            "check the memory and the versions of those machines, then run the same command again."
        )
    return own


def _device_of(launch: LaunchConfig, rank: int) -> torch.device:
    if not wants_gpu(launch):
        return torch.device("cpu")
    num_gpus, num_local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 1 < num_gpus < num_local:
        raise UserError(
            f"{num_local} ranks on {socket.gethostname()} need a GPU each, and it has {num_gpus}. Start fewer ranks there."
        )
    # A launcher may let every process see its own GPU only, which is then number 0.
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)) if num_gpus > 1 else 0)
    torch.cuda.set_device(device)
    return device


def _set_threads(launch: LaunchConfig, world_size: int) -> None:
    _keep_freed_memory()
    # More OpenMP threads than cores make every rank wait for the others: 3 to 7 times slower on contended cores.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    torch.set_num_threads(launch.threads or max(1, num_cores() // local))


def num_cores() -> int:
    """The cores that this process may use: those it is bound to, or fewer where its container's share of time is less."""
    from joblib import cpu_count  # comes with scikit-learn; knows the quotas of cgroups

    return int(cpu_count())


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory: else every activation is mapped and zeroed anew at every step, a sixth of a CPU step."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST_THRESHOLD)

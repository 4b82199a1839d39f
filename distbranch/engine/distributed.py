"""The ranks of a run: where this process stands, and the few collectives that training needs.

One process without a process group is the case of one rank; every function below then returns at once.
"""

import ctypes
import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from distbranch.config import LaunchConfig
from distbranch.engine.launcher_environment import read_launcher_environment
from distbranch.engine.waiting import NotAwaitedError, awaited
from distbranch.errors import SharedError, StoppedEarly, UserError
from distbranch.permissions import denied

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST_THRESHOLD = 2**31 - 1
SECONDS_TO_LET_GO = 0.2
MESSAGE_BYTES = 16 * 2**20  # beyond this a message costs its bytes and no longer its number
TINY = 1e-9  # three ranks of 0.333... share a GPU, whatever floating point says
# How NCCL and CUDA tell that ranks were started wrongly, as against one that is lost.
MISPLACED = (
    "Duplicate GPU detected",
    "ncclInvalidUsage",
    "ncclInvalidArgument",
    "invalid device ordinal",
    "have NCCL built in",
)
RankGroup = Any  # torch.distributed.ProcessGroup; its type differs between builds of torch


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run.

    `host_group` carries small host tensors and objects: the default group on CPU, a gloo group beside NCCL on GPUs; `timeout` is
    how long a message waits for the others.
    """

    rank: int
    world_size: int
    device: torch.device
    host_group: RankGroup | None = None
    timeout: timedelta | None = None

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

    def sum_in_team(self, teams: Sequence[range]) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What adds a tensor in place over this rank's team; None for a team of one. All ranks must call it, with the same teams.

        A team has a process group of its own, so that its messages cannot meet those of DDP.
        """
        own: RankGroup | None = None
        for team in teams:
            if len(team) > 1:  # every rank takes part in making every group
                made = dist.new_group(list(team), timeout=self.timeout)
                own = made if self.rank in team else own
        if own is None:
            return None

        def sum_over_team(tensor: torch.Tensor) -> torch.Tensor:
            dist.all_reduce(tensor, group=own)
            return tensor

        return sum_over_team

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

    def broadcast_tensors(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite `tensors`, all on the CPU or all on the ranks' device, with those of rank 0.

        Small ones of one data type travel together in messages of at most `MESSAGE_BYTES`, so little memory is needed beside them.
        """
        if self.world_size == 1:
            return
        for message in _messages(tensors):
            rows = [tensor.detach().reshape(-1) for tensor in message]  # of one tensor mostly its own memory
            flat = torch.cat(rows) if len(rows) > 1 else rows[0]
            dist.broadcast(flat, src=0, group=self._group_of(flat))
            for tensor, part in zip(message, torch.split(flat, [tensor.numel() for tensor in message]), strict=True):
                if part.data_ptr() != tensor.data_ptr():
                    tensor.detach().copy_(part.view_as(tensor))

    def sum_on_first(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all ranks, on the CPU of rank 0; what the others get means nothing."""
        tensor = tensor.cpu()
        if self.world_size > 1:
            dist.reduce(tensor, dst=0, group=self.host_group)
        return tensor

    def gather_rows(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """The `rows` [n, ...] on the CPU of every rank, by rank, on rank 0; nothing on the others. `n` may differ."""
        if self.world_size == 1:
            return [rows]
        counts = self.gather(len(rows))
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        if not self.is_first:
            dist.gather(padded, None, dst=0, group=self.host_group)
            return []
        received = [torch.empty_like(padded) for _ in counts]
        dist.gather(padded, received, dst=0, group=self.host_group)
        return [every[:count] for every, count in zip(received, counts, strict=True)]

    def scatter(self, parts: Sequence[torch.Tensor], own: torch.Tensor) -> torch.Tensor:
        """Overwrite `own` on the CPU with this rank's part of the `parts` that rank 0 has, one for each rank."""
        if self.world_size == 1:
            return own.copy_(parts[0])
        dist.scatter(own, list(parts) if self.is_first else None, src=0, group=self.host_group)
        return own

    def _group_of(self, tensor: torch.Tensor) -> RankGroup | None:
        return self.host_group if tensor.device.type == "cpu" else None

    def on_first(self, work: Callable[[], T]) -> T:
        """The result of `work` on rank 0 (a small picklable object), given to every rank; all must call it.

        Raises:
            SharedError: `work` met a UserError, or storage that failed.
        """
        result: T = self.broadcast(self.only_on_first(work))
        return result

    def only_on_first(self, work: Callable[[], T]) -> T | None:
        """The result of `work` on rank 0, None on the others; all must call it, for all learn of a failure.

        Raises:
            SharedError: see `on_first`.
        """
        value: T | None = None
        message = None
        if self.is_first:
            try:
                value = work()
            except UserError as error:
                message = self.with_place(str(error))
            except OSError as error:
                message = self.with_place(storage_message(error))
        message = self.broadcast(message)
        if message is not None:
            raise SharedError(message)
        return value

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


def _messages(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors by data type, in runs of at most `MESSAGE_BYTES`; a larger one is a message of its own."""
    message: list[torch.Tensor] = []
    num_bytes = 0
    for tensor in sorted(tensors, key=lambda tensor: str(tensor.dtype)):
        other = bool(message) and message[0].dtype != tensor.dtype
        if message and (other or num_bytes + tensor.nbytes > MESSAGE_BYTES):
            yield message
            message, num_bytes = [], 0
        message.append(tensor)
        num_bytes += tensor.nbytes
    if message:
        yield message


def send_to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the CPU on a device, without the wait for all work there that a copy from ordinary memory costs a GPU."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def storage_message(error: OSError) -> str:
    """One sentence about a file that could not be written or read."""
    if isinstance(error, PermissionError):
        return str(denied(error))
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

    A process group that stands already (Ray Train's) is used, and so is the GPU that whoever made it has chosen; under torchrun one is
    made from its environment, when every rank has its GPU; else this process is the only rank.

    Raises:
        StoppedEarly: asked to stop before all ranks had come.
        UserError: not all came in time; or they are placed so that they cannot work together, such as two of them on one GPU
            without a word of it.
    """
    timeout = timedelta(minutes=launch.timeout_min)
    device = _device_of(launch)
    made_here = not dist.is_initialized() and (num_started_ranks() or 1) > 1
    if made_here:
        _make_group(launch, device, timeout, should_stop)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    _set_threads(launch, world_size)
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


def num_started_ranks() -> int | None:
    """How many ranks torchrun, or whoever speaks its language, has started; None if nobody has."""
    world_size = read_launcher_environment().world_size
    return world_size if world_size > 1 or dist.is_torchelastic_launched() else None


def uses_nccl(launch: LaunchConfig) -> bool:
    """Whether ranks on GPUs talk by NCCL, which refuses two of them on one GPU; those that share one talk by gloo."""
    return launch.gpus_per_worker == 1


def _make_group(
    launch: LaunchConfig, device: torch.device, timeout: timedelta, should_stop: Callable[[], bool]
) -> None:
    def meet() -> None:
        if device.type == "cpu" or not uses_nccl(launch):
            dist.init_process_group("gloo", timeout=timeout)
            return
        torch.cuda.set_device(device)  # for this thread, in which the group is made
        # With its GPU named NCCL connects now, where it can be told what is wrong, and never guesses the GPU from the rank.
        dist.init_process_group("nccl", timeout=timeout, device_id=device)

    wait_for_ranks(meet, launch, should_stop)


def misplacement(error: Exception) -> str | None:
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


def wait_for_ranks(meet: Callable[[], None], launch: LaunchConfig, should_stop: Callable[[], bool]) -> None:
    """Call `meet`, which returns when all ranks have come, in a thread: it has to choose its GPU there.

    Raises:
        StoppedEarly: asked to stop before that; nothing had begun.
        UserError: not all came in time, nobody answers where they meet, or they are placed wrongly.
    """
    try:
        awaited(meet, should_stop)
    except NotAwaitedError:
        stopped = StoppedEarly(
            "Stopped while this rank waited for the others, before a new step was trained. The same command continues."
        )
        stopped.by_one_rank = True
        raise stopped from None
    except RuntimeError as error:
        message = misplacement(error)
        if message is not None:
            raise UserError(message) from None
        if not isinstance(error, dist.DistError):
            raise
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


def _device_of(launch: LaunchConfig) -> torch.device:
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
    if num_gpus > 1 or ranks_per_gpu > 1:
        if num_gpus * ranks_per_gpu < num_local:
            raise UserError(
                f"{num_local} ranks on {socket.gethostname()} with launch.gpus_per_worker={launch.gpus_per_worker:g} need "
                f"{-(-num_local // ranks_per_gpu)} GPU(s), and it has {num_gpus}. Start fewer ranks there, or let more of them share "
                "a GPU with a smaller launch.gpus_per_worker."
            )
        number //= ranks_per_gpu
    else:  # a launcher may let every process see its own GPU only, which is then number 0
        number = 0
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def num_local_ranks() -> int:
    """How many ranks run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_started_ranks() or 1))


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

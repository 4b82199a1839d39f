"""The ranks of a run: where this process stands, and the few collectives that training needs.

One process without a process group is the case of one rank; every function below then returns at once.
"""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from distbranch.errors import SharedError, UserError
from distbranch.permissions import make_denied_error

T = TypeVar("T")
MESSAGE_BYTES = 16 * 2**20  # beyond this a message costs its bytes and no longer its number
SECONDS_BETWEEN_LOOKS = 0.2  # at whether somebody asked to stop
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

    @classmethod
    def alone(cls) -> "Ranks":
        """This process alone, on a GPU if there is one."""
        return cls(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

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
        for message in _divide_into_messages(tensors):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in message])
            group = self.host_group if flat.device.type == "cpu" else None
            dist.broadcast(flat, src=0, group=group)
            parts = torch.split(flat, [tensor.numel() for tensor in message])
            for tensor, part in zip(message, parts, strict=True):
                tensor.detach().copy_(part.view_as(tensor))

    def sum_on_rank_zero(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all ranks, on the CPU of rank 0; what the others get means nothing."""
        tensor = tensor.cpu()
        if self.world_size > 1:
            dist.reduce(tensor, dst=0, group=self.host_group)
        return tensor

    def gather_rows(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """The `rows` [n, ...] on the CPU of every rank, by rank, on rank 0; nothing on the others. `n` may differ."""
        if self.world_size == 1:
            return [rows]
        # All ranks send the same number of rows, as `gather` demands; what was added is cut off again.
        counts = self.gather(len(rows))
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in counts] if self.is_first else None
        dist.gather(padded, received, dst=0, group=self.host_group)
        return [every[:count] for every, count in zip(received or [], counts, strict=False)]

    def scatter(self, parts: Sequence[torch.Tensor], own: torch.Tensor) -> torch.Tensor:
        """Overwrite `own` on the CPU with this rank's part of the `parts` that rank 0 has, one for each rank."""
        if self.world_size == 1:
            return own.copy_(parts[0])
        dist.scatter(own, list(parts) if self.is_first else None, src=0, group=self.host_group)
        return own

    def run_on_rank_zero(self, work: Callable[[], T]) -> T:
        """The result of `work` on rank 0 (a small picklable object), given to every rank; all must call it.

        Raises:
            SharedError: `work` met a UserError, or storage that failed.
        """
        result: T = self.broadcast(self.run_only_on_rank_zero(work))
        return result

    def run_only_on_rank_zero(self, work: Callable[[], T]) -> T | None:
        """The result of `work` on rank 0, None on the others; all must call it, for all learn of a failure.

        Raises:
            SharedError: see `run_on_rank_zero`.
        """
        value: T | None = None
        problem = None
        if self.is_first:
            try:
                value = work()
            except UserError as error:
                problem = self.with_place(str(error))
            except OSError as error:
                problem = self.with_place(describe_storage_failure(error))
        problem = self.broadcast(problem)
        if problem is not None:
            raise SharedError(problem)
        return value

    def raise_on_all_ranks(self, message: str | None) -> None:
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


def _divide_into_messages(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors by data type, in runs of at most `MESSAGE_BYTES`; a larger one is a message of its own."""
    by_type = sorted(tensors, key=lambda tensor: str(tensor.dtype))
    for _, alike in groupby(by_type, key=lambda tensor: tensor.dtype):
        message: list[torch.Tensor] = []
        num_bytes = 0
        for tensor in alike:
            if message and num_bytes + tensor.nbytes > MESSAGE_BYTES:
                yield message
                message, num_bytes = [], 0
            message.append(tensor)
            num_bytes += tensor.nbytes
        yield message


def send_to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the CPU on a device, without the wait for all work there that a copy from ordinary memory costs a GPU."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def describe_storage_failure(error: OSError) -> str:
    """One sentence about a file that could not be written or read."""
    if isinstance(error, PermissionError):
        return str(make_denied_error(error))
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


def compute_fingerprint(tree_json: str, tensors: Mapping[str, torch.Tensor]) -> str:
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
    different = [
        f"rank {rank} on {host}" for rank, (other, host) in enumerate(every) if other != every[0][0]
    ]
    if different:
        raise SharedError(
            f"At {what} all ranks should hold the same tree and weights, but {', '.join(different)} differ(s) from rank 0. "
            "Nothing was saved since the last checkpoint; check the memory and the versions of those machines, then run the same "
            "command again."
        )
    return own


class NotAwaitedError(Exception):
    """Somebody asked to stop before it was there."""


def wait_for_result(call: Callable[[], T], should_stop: Callable[[], bool]) -> T:
    """What `call` returns, or raises; for ranks that do not come, or for a download.

    The main thread must not be the one that waits: Python runs the handlers of signals in it, and not while it is in a library.

    Raises:
        NotAwaitedError: `should_stop` came first; the call continues without anybody.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # of any kind: it is raised where the call is awaited
            future.set_exception(error)

    # No ThreadPoolExecutor: the process would wait for its threads at the end, and this call may never return.
    threading.Thread(target=run, name="distbranch-waiting", daemon=True).start()
    while not wait([future], timeout=SECONDS_BETWEEN_LOOKS).done:
        if should_stop():
            raise NotAwaitedError
    return future.result()

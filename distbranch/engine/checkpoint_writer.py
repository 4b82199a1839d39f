"""Checkpoints written behind the training: the state is copied at its step, and a thread writes the copy while steps follow.

One is under way at a time. The thread touches files alone and never another rank: what it met is raised in the main thread.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from distbranch.engine.checkpoint import Checkpoint
from distbranch.errors import reason_of

logger = logging.getLogger("distbranch")


class CheckpointWriter:
    """Does one piece of work at a time in a thread; rank 0 has one.

    ```python
    writer = CheckpointWriter()
    writer.begin(lambda: save_checkpoint(folder, 5, copy_to_host(checkpoint), keep=2))
    ...  # steps
    writer.finish()
    ```
    """

    def __init__(self) -> None:
        self._under_way: Future[object] | None = None

    def begin(self, write: Callable[[], object]) -> None:
        """Wait for the work before, then begin `write`, which must hold copies of all that training changes.

        Raises:
            Exception: what the work before has met.
        """
        self.finish()
        # Its thread is no daemon: a process that ends in order waits for it, so what was begun is not lost.
        executor = ThreadPoolExecutor(1, thread_name_prefix="distbranch-checkpoint")
        self._under_way = executor.submit(write)
        executor.shutdown(wait=False)

    def finish(self) -> None:
        """Wait until nothing is under way.

        Raises:
            Exception: what the work has met; once.
        """
        work, self._under_way = self._under_way, None
        if work is not None:
            work.result()

    def finish_and_warn(self) -> None:
        """Wait as `finish` does, where another error is on its way already: what the work has met is a warning."""
        try:
            self.finish()
        # Of any kind: the error that ends the run must not be hidden by it.
        except Exception as error:
            logger.warning("A checkpoint could not be written: %s", reason_of(error))

    @property
    def has_failed(self) -> bool:
        """Whether the work has met an error that nobody was told yet; does not wait."""
        work = self._under_way
        return work is not None and work.done() and work.exception() is not None


def copy_to_host(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its tensors copied to memory of the CPU, so that training may change its own."""
    tensors: dict[str, Mapping[str, Tensor]] = {}
    devices: set[torch.device] = set()
    for file, members in checkpoint.tensors.items():
        tensors[file] = {name: _copy_tensor(value) for name, value in members.items()}
        devices.update(value.device for value in members.values())
    # All copies of a GPU are under way at once, and waited for once.
    for device in devices:
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
    return Checkpoint(checkpoint.state, tensors)


def _copy_tensor(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return tensor.clone()
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)

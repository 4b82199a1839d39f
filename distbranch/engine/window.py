"""What is measured between two logged steps."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class StepWindow:
    """Sums of losses since the last logged step; the first step whose loss was not finite is remembered per task.

    The clock starts anew after whatever is no training, such as an evaluation, and has a count of samples of its own.
    """

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self.losses = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.losses)
        self.num_samples = 0  # of the losses
        self.not_finite = torch.zeros(num_tasks, dtype=torch.int64, device=device)  # first step, 0: none
        self.own_not_finite = torch.zeros(
            (), dtype=torch.bool, device=device
        )  # whether a loss of this rank was the cause
        self.rate = 0.0  # of the last step, as the norm is
        self.norm: Tensor | None = None
        self._since_save = time.perf_counter()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure the pace from here on; the losses are kept."""
        self.began = time.perf_counter()
        self.num_steps = self.num_timed = 0
        self.waited = 0.0

    def add(self, *, num_samples: int, waited: float, rate: float, norm: Tensor) -> None:
        """One step of `num_samples` over all ranks that waited `waited` seconds for data."""
        self.num_steps += 1
        self.num_timed += num_samples
        self.waited += waited
        self.rate, self.norm = rate, norm

    def add_own_losses(self, losses: Tensor) -> None:
        """The losses [T] of one step on this rank alone."""
        self.own_not_finite |= ~losses.isfinite().all()

    def add_losses(self, losses: Tensor, counts: Tensor, iteration: int, *, num_samples: int) -> None:
        """The sums of losses and the numbers of labels [T] of one step of `num_samples`, over all ranks."""
        self.losses += losses
        self.counts += counts
        self.num_samples += num_samples
        first = (self.not_finite == 0) & ~losses.isfinite()
        self.not_finite.masked_fill_(first, iteration)

    def first_not_finite(self) -> tuple[int, int] | None:
        """(step, task) of the first loss that was NaN or infinite."""
        steps = self.not_finite.tolist()
        return min(((step, task) for task, step in enumerate(steps) if step), default=None)

    def pace(self) -> dict[str, float]:
        """Images per second over all ranks, and the share of the time that went by waiting for data."""
        seconds = time.perf_counter() - self.began
        return {"samples_per_second": self.num_timed / seconds, "data_wait": self.waited / seconds}

    def take(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The measurements since the last call. `loss` is what is optimised, per sample; a task's is None without a label."""
        sums = list(zip(names, self.losses.tolist(), self.counts.tolist(), strict=True))
        norm = float(self.norm) if self.norm is not None else math.nan
        measured = {
            "loss": sum(loss for _, loss, _ in sums) / self.num_samples,
            "task_loss": {name: loss / count if count else None for name, loss, count in sums},
            "learning_rate": self.rate,
            "gradient_norm": norm if math.isfinite(norm) else None,
            **self.pace(),
        }
        self.restart_clock()
        self.losses.zero_()
        self.counts.zero_()
        self.num_samples = 0
        return measured

    def to_json(self) -> dict[str, Any]:
        """The sums, so that a run that goes on logs what it would have logged."""
        return {"losses": self.losses.tolist(), "counts": self.counts.tolist(), "num_samples": self.num_samples}

    def load(self, values: Mapping[str, Any]) -> None:
        """The inverse of `to_json`."""
        self.losses.copy_(torch.tensor(values["losses"], dtype=torch.float64))
        self.counts.copy_(torch.tensor(values["counts"], dtype=torch.float64))
        self.num_samples = values["num_samples"]

    def take_seconds(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        seconds, self._since_save = now - self._since_save, now
        return seconds

"""What is measured between two logged steps."""

import math
import time
from typing import Any

import torch
from torch import Tensor


class StepWindow:
    """Sums since the last logged step; the first step whose loss was not finite is remembered per task."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self.losses = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.losses)
        self.not_finite = torch.zeros(num_tasks, dtype=torch.int64, device=device)  # first step, 0: none
        self.own_not_finite = torch.zeros(
            (), dtype=torch.bool, device=device
        )  # whether a loss of this rank was the cause
        self._since_save = time.perf_counter()
        self.restart()

    def restart(self) -> None:
        """Begin a new window."""
        self.began = time.perf_counter()
        self.num_steps = self.num_samples = 0
        self.waited = self.rate = 0.0
        self.norm: Tensor | None = None
        self.losses.zero_()
        self.counts.zero_()

    def add(self, *, num_samples: int, waited: float, rate: float, norm: Tensor) -> None:
        """One step of `num_samples` over all ranks that waited `waited` seconds for data."""
        self.num_steps += 1
        self.num_samples += num_samples
        self.waited += waited
        self.rate, self.norm = rate, norm

    def add_own_losses(self, losses: Tensor) -> None:
        """The losses [T] of one step on this rank alone."""
        self.own_not_finite |= ~losses.isfinite().all()

    def add_losses(self, losses: Tensor, counts: Tensor, iteration: int) -> None:
        """The sums of losses and the numbers of labels [T] of one step, over all ranks."""
        self.losses += losses
        self.counts += counts
        first = (self.not_finite == 0) & ~losses.isfinite()
        self.not_finite.masked_fill_(first, iteration)

    def first_not_finite(self) -> tuple[int, int] | None:
        """(step, task) of the first loss that was NaN or infinite."""
        steps = self.not_finite.tolist()
        return min(((step, task) for task, step in enumerate(steps) if step), default=None)

    def pace(self) -> dict[str, float]:
        """Images per second over all ranks, and the share of the time that went by waiting for data."""
        seconds = time.perf_counter() - self.began
        return {"samples_per_second": self.num_samples / seconds, "data_wait": self.waited / seconds}

    def take(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The measurements since the last call."""
        means = (self.losses / self.counts.clamp(min=1)).tolist()
        norm = float(self.norm) if self.norm is not None else math.nan
        measured = {
            "loss": sum(means),
            "task_loss": dict(zip(names, means, strict=True)),
            "learning_rate": self.rate,
            "gradient_norm": norm if math.isfinite(norm) else None,
            **self.pace(),
        }
        self.restart()
        return measured

    def take_seconds(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        seconds, self._since_save = now - self._since_save, now
        return seconds

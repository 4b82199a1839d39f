"""What the steps since the last logged one have measured."""

import math
import time
from collections.abc import Mapping, Sequence
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
        self.not_finite = torch.zeros(
            num_tasks, dtype=torch.int64, device=device
        )  # first step, 0: none
        # Whether a loss of this rank was the cause: on the device, as the others are, so that no step waits for it.
        self.own_not_finite = torch.zeros((), dtype=torch.bool, device=device)
        self.rate = 0.0  # of the last step, as the norm is
        self.norm: Tensor | None = None
        self._measured_at = time.perf_counter()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure the pace from here on; the losses are kept."""
        self.began = time.perf_counter()
        self.num_steps = self.num_timed = 0
        self.waited = 0.0

    def add_step(self, *, num_samples: int, waited: float, rate: float, norm: Tensor) -> None:
        """One step of `num_samples` over all ranks that waited `waited` seconds for data."""
        self.num_steps += 1
        self.num_timed += num_samples
        self.waited += waited
        self.rate = rate
        self.norm = norm

    def add_own_losses(self, losses: Tensor) -> None:
        """The losses [T] of one step on this rank alone."""
        self.own_not_finite |= ~losses.isfinite().all()

    def add_losses(
        self, losses: Tensor, counts: Tensor, iteration: int, *, num_samples: int
    ) -> None:
        """The sums of losses and the numbers of labels [T] of one step of `num_samples`, over all ranks."""
        self.losses += losses
        self.counts += counts
        self.num_samples += num_samples
        first = (self.not_finite == 0) & ~losses.isfinite()
        self.not_finite.masked_fill_(first, iteration)

    def find_first_not_finite(self) -> tuple[int, int] | None:
        """(step, task) of the first loss that was NaN or infinite."""
        found = [(step, task) for task, step in enumerate(self.not_finite.tolist()) if step]
        return min(found, default=None)

    def measure_pace(self) -> dict[str, float]:
        """Images per second over all ranks, and the share of the time that went by waiting for data."""
        seconds = time.perf_counter() - self.began
        return {"samples_per_second": self.num_timed / seconds, "data_wait": self.waited / seconds}

    def measure_and_reset(
        self, names: tuple[str, ...], weights: Sequence[float] | None = None
    ) -> dict[str, Any]:
        """The measurements since the last call. `loss` is what is optimised, per sample; a task's is None without a label.

        weights: of the losses, as of the last step, if they are not all 1.
        """
        losses = self.losses.tolist()
        weighted = losses
        if weights is not None:
            weighted = [loss * weight for loss, weight in zip(losses, weights, strict=True)]
        task_loss: dict[str, float | None] = dict.fromkeys(names)
        for name, loss, count in zip(names, losses, self.counts.tolist(), strict=True):
            if count:
                task_loss[name] = loss / count
        norm = None if self.norm is None else float(self.norm)
        if norm is not None and not math.isfinite(norm):
            norm = None  # JSON has no NaN and no infinity
        measured = {
            "loss": sum(weighted) / self.num_samples,
            "task_loss": task_loss,
            "learning_rate": self.rate,
            "gradient_norm": norm,
            **self.measure_pace(),
        }
        if weights is not None:
            measured["loss_weights"] = dict(zip(names, weights, strict=True))
        self.restart_clock()
        self.losses.zero_()
        self.counts.zero_()
        self.num_samples = 0
        return measured

    def to_json(self) -> dict[str, Any]:
        """The sums, so that a resumed run logs what it would have logged."""
        return {
            "losses": self.losses.tolist(),
            "counts": self.counts.tolist(),
            "num_samples": self.num_samples,
        }

    def load_json(self, values: Mapping[str, Any]) -> None:
        """The inverse of `to_json`."""
        self.losses.copy_(torch.tensor(values["losses"], dtype=torch.float64))
        self.counts.copy_(torch.tensor(values["counts"], dtype=torch.float64))
        self.num_samples = values["num_samples"]

    def measure_seconds(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        seconds = now - self._measured_at
        self._measured_at = now
        return seconds

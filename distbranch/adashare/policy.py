"""The select-or-skip policy: per task and block two logits (execute, skip), what is drawn from them, and what they cost.

The curriculum of the search says as arithmetic on the step what is trained, and how many blocks the policy may decide.
Draws are functions of a seed and a number, not of a generator's past: every rank, and a run that is continued, has the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

EXECUTE, SKIP = 0, 1

Preset = Literal["paper", "experiments"]
Phase = Literal["warm-up", "weights", "policy"]

FIRST_TEMPERATURE = 5.0
COOLING = 0.965  # per completed cycle


def sample_gumbel_noise(num_tasks: int, num_blocks: int, *, seed: int, step: int) -> Tensor:
    """Standard Gumbel noise [T, L, 2] of one forward pass; the same on every rank."""
    uniform = _draw_uniform((num_tasks, num_blocks, 2), seed, step, 2)
    return torch.from_numpy(-np.log(-np.log(uniform))).float()


def sample_soft_decisions(logits: Tensor, noise: Tensor, *, temperature: float, num_released: int) -> Tensor:
    """The Gumbel-softmax sample [T, n, 2] of a policy for its last n = `num_released` blocks; those below execute.

    Args:
        logits: [T, L, 2].
        noise: [T, L, 2], of `sample_gumbel_noise`.
        temperature: above 0; near 0 the sample is nearly one or the other.
        num_released: 0..L.
    """
    released = logits.shape[1] - num_released
    return functional.softmax((logits[:, released:] + noise[:, released:]) / temperature, dim=2)


def compute_execute_probabilities(logits: Tensor) -> Tensor:
    """[T, L]: how probable it is that a task executes a block."""
    return functional.softmax(logits.detach().double(), dim=2)[:, :, EXECUTE]


def sample_policy(probabilities: NDArray[np.float64], *, number: int) -> NDArray[np.bool_]:
    """Policy `number` of a search [T, L], True = execute: one Bernoulli draw per task and block from its probability."""
    executes: NDArray[np.bool_] = _draw_uniform(probabilities.shape, number, 3) < probabilities
    return executes


def sparsity_loss(logits: Tensor, *, num_released: int) -> Tensor:
    """Sum over tasks of the mean of -log p(skip) over the released blocks; 0 if none is released."""
    if num_released == 0:
        return logits.sum() * 0.0
    return -functional.log_softmax(logits, dim=2)[:, -num_released:, SKIP].mean(dim=1).sum()


def sharing_loss(logits: Tensor, *, preset: Preset) -> Tensor:
    """Sum over pairs of tasks and over blocks l = 0..L-1 of w_l times the distance of the two scores for executing.

    `paper`: scores are probabilities, w_l = (L - l) / L, so that tasks part high up; `experiments`, as the published programs
    have it: raw logits and w_l = (l + 1) / L.
    """
    num_tasks, num_blocks, _ = logits.shape
    ascending = torch.arange(1, num_blocks + 1, device=logits.device, dtype=logits.dtype) / num_blocks
    if preset == "paper":
        scores = functional.softmax(logits, dim=2)[:, :, EXECUTE]
        weights = ascending.flip(0)
    else:
        scores = logits[:, :, EXECUTE]
        weights = ascending
    one, other = torch.triu_indices(num_tasks, num_tasks, offset=1, device=logits.device)
    return ((scores[one] - scores[other]).abs() * weights).sum()


def get_default_loss_weights(num_tasks: int) -> tuple[float, float]:
    """(lambda_sparsity, lambda_sharing) of the published experiments for 2, 3 and 5 tasks; more tasks take those of 5."""
    if num_tasks <= 2:
        return 0.05, 0.05
    return (0.001, 0.05) if num_tasks == 3 else (0.001, 0.005)


def _draw_uniform(shape: tuple[int, ...], *seed: int) -> NDArray[np.float64]:
    """Uniform in the open interval (0, 1), from raw Philox numbers, which no release of numpy changes."""
    raw = np.random.Philox(np.random.SeedSequence(seed)).random_raw(int(np.prod(shape)))
    uniform: NDArray[np.float64] = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    return uniform.reshape(shape)


@dataclass(frozen=True)
class Curriculum:
    """A warm-up in which all tasks share every block, then cycles of weight steps followed by policy steps.

    warmup: steps before the first cycle.
    weight_steps, policy_steps: of every cycle.
    num_blocks: L.
    speed: cycles between the release of one block and that of the next below it.
    """

    warmup: int
    weight_steps: int
    policy_steps: int
    num_blocks: int
    speed: int = 3

    @property
    def cycle_steps(self) -> int:
        """Steps of one cycle."""
        return self.weight_steps + self.policy_steps

    def phase(self, step: int) -> Phase:
        """What step `step` (counted from 0) trains."""
        if step < self.warmup:
            return "warm-up"
        return "weights" if (step - self.warmup) % self.cycle_steps < self.weight_steps else "policy"

    def cycle(self, step: int) -> int:
        """Cycles that were completed before step `step`."""
        return max(0, step - self.warmup) // self.cycle_steps

    def num_released(self, step: int) -> int:
        """How many of the last blocks the policy decides at step `step`; all others execute."""
        return 0 if step < self.warmup else min(self.num_blocks, self.cycle(step) // self.speed + 1)

    @property
    def first_step_with_all(self) -> int:
        """The first step at which the policy decides every block."""
        return self.warmup + (self.num_blocks - 1) * self.speed * self.cycle_steps

    def temperature(self, step: int) -> float:
        """Of the Gumbel softmax at step `step`."""
        return FIRST_TEMPERATURE * COOLING ** self.cycle(step)

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

# Of the published experiments: warm samples are nearly even, so that early cycles try both choices of every block.
FIRST_TEMPERATURE = 5.0

# (lambda_sparsity, lambda_sharing) of the published experiments, by the number of tasks.
LOSS_WEIGHTS = {2: (0.05, 0.05), 3: (0.001, 0.05), 5: (0.001, 0.005)}


def sample_gumbel_noise(num_tasks: int, num_blocks: int, *, seed: int, step: int) -> Tensor:
    """Standard Gumbel noise [T, L, 2] of one forward pass; the same on every rank."""
    # The 2 keeps these draws apart from those of policies.
    uniform = _draw_uniform((num_tasks, num_blocks, 2), seed, step, 2)
    noise = -np.log(-np.log(uniform))
    return torch.from_numpy(noise).float()


def sample_soft_decisions(
    logits: Tensor, noise: Tensor, *, temperature: float, num_released: int
) -> Tensor:
    """The Gumbel-softmax sample [T, n, 2] of a policy for its last n = `num_released` blocks; those below execute.

    Args:
        logits: [T, L, 2].
        noise: [T, L, 2], of `sample_gumbel_noise`.
        temperature: above 0; near 0 the sample is nearly one or the other.
        num_released: 0..L.
    """
    first = logits.shape[1] - num_released
    perturbed = logits[:, first:] + noise[:, first:]
    return functional.softmax(perturbed / temperature, dim=2)


def compute_execute_probabilities(logits: Tensor) -> Tensor:
    """[T, L]: how probable it is that a task executes a block."""
    # In float64, for they are compared with draws of 53 bits.
    shares = functional.softmax(logits.detach().double(), dim=2)
    return shares[:, :, EXECUTE]


def sample_policy(probabilities: NDArray[np.float64], *, number: int) -> NDArray[np.bool_]:
    """Policy `number` of a search [T, L], True = execute: one Bernoulli draw per task and block from its probability."""
    draws = _draw_uniform(probabilities.shape, number, 3)
    executes: NDArray[np.bool_] = draws < probabilities
    return executes


def compute_sparsity_loss(logits: Tensor, *, num_released: int) -> Tensor:
    """Sum over tasks of the mean of -log p(skip) over the released blocks; 0 if none is released."""
    if num_released == 0:
        return logits.sum() * 0.0  # not a constant, for a gradient of 0 is asked of it
    log_shares = functional.log_softmax(logits, dim=2)
    released = log_shares[:, -num_released:, SKIP]
    return -released.mean(dim=1).sum()


def compute_sharing_loss(logits: Tensor, *, preset: Preset) -> Tensor:
    """Sum over pairs of tasks and over blocks l = 0..L-1 of w_l times the distance of the two scores for executing.

    `paper`: scores are probabilities, w_l = (L - l) / L, so that tasks part high up; `experiments`, as the published programs
    have it: raw logits and w_l = (l + 1) / L.
    """
    num_tasks, num_blocks, _ = logits.shape
    weights = torch.arange(1, num_blocks + 1, device=logits.device, dtype=logits.dtype) / num_blocks
    scores = logits
    # The text and the programs of the paper differ, so there are both.
    if preset == "paper":
        weights = weights.flip(0)
        scores = functional.softmax(logits, dim=2)
    executes = scores[:, :, EXECUTE]
    one, other = torch.triu_indices(num_tasks, num_tasks, offset=1, device=logits.device)
    distances = (executes[one] - executes[other]).abs()
    return (distances * weights).sum()


def get_default_loss_weights(num_tasks: int) -> tuple[float, float]:
    """(lambda_sparsity, lambda_sharing) of the published experiments for 2, 3 and 5 tasks; more tasks take those of 5."""
    return LOSS_WEIGHTS.get(max(2, num_tasks), LOSS_WEIGHTS[5])


def _draw_uniform(shape: tuple[int, ...], *seed: int) -> NDArray[np.float64]:
    """Uniform in the open interval (0, 1), from raw Philox numbers, which no release of numpy changes."""
    generator = np.random.Philox(np.random.SeedSequence(seed))
    raw = generator.random_raw(int(np.prod(shape)))
    # The upper 53 bits are all that a float64 holds; + 0.5 keeps 0 out, whose logarithm is infinite.
    upper = raw >> np.uint64(11)
    uniform: NDArray[np.float64] = (upper.astype(np.float64) + 0.5) / 2**53
    return uniform.reshape(shape)


@dataclass(frozen=True)
class Curriculum:
    """A warm-up in which all tasks share every block, then cycles of weight steps followed by policy steps.

    warmup: steps before the first cycle.
    weight_steps, policy_steps: of every cycle.
    num_blocks: L.
    speed: cycles between the release of one block and that of the next below it.
    cooling: of the temperature, per completed cycle.
    """

    warmup: int
    weight_steps: int
    policy_steps: int
    num_blocks: int
    speed: int = 3
    cooling: float = 0.965

    @property
    def cycle_steps(self) -> int:
        """Steps of one cycle."""
        return self.weight_steps + self.policy_steps

    def phase(self, step: int) -> Phase:
        """What step `step` (counted from 0) trains."""
        if step < self.warmup:
            return "warm-up"
        into_cycle = (step - self.warmup) % self.cycle_steps
        return "weights" if into_cycle < self.weight_steps else "policy"

    def cycle(self, step: int) -> int:
        """Cycles that were completed before step `step`."""
        since_warmup = max(0, step - self.warmup)
        return since_warmup // self.cycle_steps

    def num_released(self, step: int) -> int:
        """How many of the last blocks the policy decides at step `step`; all others execute."""
        if step < self.warmup:
            return 0
        # Blocks near the heads first: the curriculum of the paper.
        return min(self.num_blocks, self.cycle(step) // self.speed + 1)

    @property
    def first_step_with_all(self) -> int:
        """The first step at which the policy decides every block."""
        num_cycles = (self.num_blocks - 1) * self.speed
        return self.warmup + num_cycles * self.cycle_steps

    def temperature(self, step: int) -> float:
        """Of the Gumbel softmax at step `step`."""
        return FIRST_TEMPERATURE * self.cooling ** self.cycle(step)

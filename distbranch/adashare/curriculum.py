"""When AdaShare trains what: the phases of its search, and how many blocks the policy may decide, as arithmetic on the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["warm-up", "weights", "policy"]

FIRST_TEMPERATURE = 5.0
COOLING = 0.965  # per completed cycle


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

"""What the loss of every task is multiplied by: given weights, and weightings that follow the losses.

To a step a weighting is one number per task, the slope of what it minimises in that task's loss, so nothing else of the step knows
which one it is. Losses that enter one are L [T], sums over the batch of all ranks times the given weights, over its number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distbranch.config.training import LossConfig
from distbranch.engine.optimizer_and_schedule import list_slots, load_slots
from distbranch.errors import SharedError
from distbranch.extras import require
from distbranch.kinds import KINDS
from distbranch.registry import find_near
from distbranch.tasks import Task

STCH_SMOOTHNESS = (
    0.5  # mu: of the four values of its paper one whose gradient still reaches all tasks
)
DWA_TEMPERATURE = 2.0  # of its paper
# Stand for the loss of a task that has no label in a batch: beyond all others at the end where it has no part in the step.
ENDLESS = 1e30


def get_loss_weights(tasks: Sequence[Task], given: Mapping[str, float]) -> list[float]:
    """The weight of every task: the given one, else that of its kind.

    Raises:
        SharedError: a weight is given for a task that there is not, with the nearest names.

    Example:
        >>> get_loss_weights([Task("smiling"), Task("young")], {"young": 2.0})
        [1.0, 2.0]
    """
    names = [task.name for task in tasks]
    for name in given:
        if name not in names:
            near = ", ".join(find_near(name, names)[:8])
            raise SharedError(
                f"loss.weights should name tasks of the data set, found {name!r}. The nearest of its {len(names)} are: {near}."
            )
    return [given.get(task.name, KINDS[task.kind].default_weight) for task in tasks]


class LossWeighting(nn.Module):
    """Given weights alone, and the base of all others.

    Its buffers and parameters are in the checkpoint, those in `trained` are the optimiser's, too.

    Args:
        given: of every task [T].
    """

    given: Tensor
    in_force: Tensor
    is_fixed = True
    """Whether no loss changes the weights."""
    needs_losses = False
    """Whether the weights of a step depend on the losses of that step."""
    compares_losses = False
    """Whether it learns from the losses of the same images before and after a step."""

    def __init__(self, given: Sequence[float]) -> None:
        super().__init__()
        self.num_tasks = len(given)
        self.register_buffer("given", torch.tensor(given), persistent=False)
        # Those of the last step, which are logged.
        self.register_buffer("in_force", torch.tensor(given), persistent=False)
        self.is_plain = self.is_fixed and set(given) == {1.0}

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the optimiser of the run trains besides the network."""
        return []

    def weigh(self, losses: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
        """The weights [T] of a step.

        Args:
            losses: of the step [T], where `needs_losses`.
            counts: labels of the step [T], likewise.
        """
        self.in_force = self._weigh(losses, counts) * self.given
        return self.in_force

    def _weigh(self, losses: Tensor | None, counts: Tensor | None) -> Tensor:  # noqa: ARG002
        return torch.ones_like(self.given)

    def get_logged_weights(self) -> list[float] | None:
        """The weights of the last step [T]; None where they are all 1 for good, of which nobody needs to be told."""
        return None if self.is_plain else self.in_force.tolist()

    def learn(self, losses: Tensor, counts: Tensor, num_steps: int) -> None:
        """Take in the losses [T] and the numbers of labels [T] of a step, before its optimiser's; `num_steps` counts it."""

    def compare(self, losses: Tensor) -> None:
        """Take in the losses [T] of a step's images after it."""

    def state_tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds of it, by name."""
        return {name: value.detach() for name, value in self.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_tensors`."""
        self.load_state_dict(dict(tensors))


class LearnedWeighting(LossWeighting):
    """`uncertainty` (Kendall et al. 2018), sum of exp(-s) L / 2 + s / 2, or `imtl-l` (Liu et al. 2021), sum of exp(s) L - s.

    What is minimised is linear in the losses, so its slopes are known before them.
    """

    is_fixed = False

    def __init__(self, given: Sequence[float], scalarizer: nn.Module) -> None:
        super().__init__(given)
        self.scalarizer = scalarizer

    @property
    def trained(self) -> list[nn.Parameter]:
        """The s of every task [T]."""
        return list(self.scalarizer.parameters())

    def _weigh(self, losses: Tensor | None, counts: Tensor | None) -> Tensor:  # noqa: ARG002
        return _compute_slopes(self.scalarizer, torch.ones_like(self.given))

    def learn(self, losses: Tensor, counts: Tensor, num_steps: int) -> None:  # noqa: ARG002
        """The gradient of s; `losses` are those of all ranks, so it is the same on each."""
        total = self.scalarizer(losses.to(self.given.dtype))
        gradients = torch.autograd.grad(total, self.trained)
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient


class DynamicWeightAverage(LossWeighting):
    """`dwa` (Liu et al. 2019): T softmax(r / 2), r being by what a mean loss was multiplied from one window of steps to the next.

    TorchJD has it too, but tells the weights of a step only when its losses are known, which costs a message between the ranks.
    """

    is_fixed = False
    sums: Tensor
    counts: Tensor
    means: Tensor

    def __init__(self, given: Sequence[float], window: int) -> None:
        super().__init__(given)
        self.window = window
        for name in ("sums", "counts"):
            self.register_buffer(name, torch.zeros(self.num_tasks, dtype=torch.float64))
        # Of the last two windows, the older first; NaN before there were two, and of a task without labels in one.
        means = torch.full((2, self.num_tasks), torch.nan, dtype=torch.float64)
        self.register_buffer("means", means)

    def _weigh(self, losses: Tensor | None, counts: Tensor | None) -> Tensor:  # noqa: ARG002
        rates = torch.nan_to_num(self.means[1] / self.means[0], nan=1.0, posinf=1.0)
        shares = torch.softmax(rates / DWA_TEMPERATURE, dim=0)
        return (self.num_tasks * shares).to(self.given.dtype)

    def learn(self, losses: Tensor, counts: Tensor, num_steps: int) -> None:
        """Add to the sums of the window; at its end they become a mean."""
        self.sums += losses
        self.counts += counts
        if num_steps % self.window == 0:
            self.means = torch.stack([self.means[1], self.sums / self.counts])
            self.sums.zero_()
            self.counts.zero_()


class SmoothTchebycheff(LossWeighting):
    """`stch` (Lin et al. 2024): mu log sum exp(L / mu), times T so that tasks of equal loss weigh what they weigh without it."""

    is_fixed = False
    needs_losses = True

    def __init__(self, given: Sequence[float], scalarizer: Any) -> None:
        super().__init__(given)
        self.scalarizer = scalarizer

    def _weigh(self, losses: Tensor | None, counts: Tensor | None) -> Tensor:
        assert losses is not None
        assert counts is not None
        self.scalarizer.weights = self.scalarizer.weights.to(losses.device)  # it is no buffer
        labelled = losses.masked_fill(counts == 0, -ENDLESS)
        return self.num_tasks * _compute_slopes(self.scalarizer, labelled)


class FastAdaptive(LossWeighting):
    """`famo` (Liu et al. 2023): z_t log L_t, in steps of one size, times T; z follows by how much each loss fell in the step.

    Its z has an Adam of its own, as published. The losses after a step cost a forward pass.
    """

    is_fixed = False
    needs_losses = True
    compares_losses = True

    def __init__(self, given: Sequence[float], scalarizer: Any) -> None:
        super().__init__(given)
        self.scalarizer = scalarizer
        self._unlabelled = torch.zeros(self.num_tasks, dtype=torch.bool)

    def _weigh(self, losses: Tensor | None, counts: Tensor | None) -> Tensor:
        assert losses is not None
        assert counts is not None
        self._unlabelled = counts == 0
        filled = losses.masked_fill(self._unlabelled, ENDLESS)
        return self.num_tasks * _compute_slopes(self.scalarizer, filled)

    def compare(self, losses: Tensor) -> None:
        """One step of z."""
        self.scalarizer.update(losses.masked_fill(self._unlabelled, ENDLESS))

    def state_tensors(self) -> dict[str, Tensor]:
        """With the Adam's, which TorchJD makes at the first comparison and does not save."""
        optimizer = self.scalarizer._optimizer
        slots = {} if optimizer is None else list_slots(optimizer, self)
        return super().state_tensors() | slots

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See `state_tensors`."""
        slots = {name: value for name, value in tensors.items() if ":" in name}
        super().load_tensors({name: value for name, value in tensors.items() if name not in slots})
        if slots:
            self.scalarizer._optimizer = torch.optim.Adam(
                self.scalarizer.parameters(),
                lr=self.scalarizer.lr,
                weight_decay=self.scalarizer.weight_decay,
            )
            load_slots(self.scalarizer._optimizer, self, slots)


def make_weighting(
    config: LossConfig, tasks: Sequence[Task], trained: Collection[str] | None = None
) -> LossWeighting:
    """The weighting of a configuration, at its beginning; the losses of tasks that are not `trained` (None: all are) weigh 0.

    Raises:
        SharedError: a weight is given for a task that there is not.
        UserError: TorchJD is absent.
    """
    given = get_loss_weights(tasks, config.weights)
    if trained is not None:
        given = [
            weight if task.name in trained else 0.0
            for task, weight in zip(tasks, given, strict=True)
        ]
    name = config.weighting
    if name == "fixed":
        return LossWeighting(given)
    if name == "dwa":
        return DynamicWeightAverage(given, config.window)
    require("torchjd", "weighting", f"loss.weighting={name}")
    from torchjd import scalarization

    if name == "uncertainty":
        return LearnedWeighting(given, scalarization.UW(len(given)))
    if name == "imtl-l":
        return LearnedWeighting(given, scalarization.IMTLL(len(given)))
    if name == "stch":
        ones = torch.ones(len(given))
        return SmoothTchebycheff(given, scalarization.STCH(STCH_SMOOTHNESS, weights=ones))
    return FastAdaptive(given, scalarization.FAMO(len(given)))


def _compute_slopes(scalarise: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    """The gradient [T] of what is minimised, in the losses [T]."""
    values = losses.detach().requires_grad_()
    (slopes,) = torch.autograd.grad(scalarise(values), values)
    return slopes

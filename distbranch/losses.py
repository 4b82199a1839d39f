"""What is minimised, by name: a loss of a kind of task, in place of the kind's own (`loss.functions`).

An entry is named `KIND:NAME` and takes logits [B, n, K] of n tasks and labels [B, n] without NaN; it returns [B, n], with a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from distbranch.kinds import KINDS, Loss
from distbranch.registry import Registry

GAMMA = 2.0  # of the focal loss: its authors' choice, and the best of their table

LOSSES: Registry[Loss] = Registry("loss")
for _kind in ("binary", "categorical", "ordinal"):
    LOSSES.register(f"{_kind}:cross-entropy")(KINDS[_kind].compute_loss)
LOSSES.register("number:smooth-l1")(KINDS["number"].compute_loss)


@LOSSES.register("number:squared-error")
def compute_squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """The square of the standardised error; its best answer is the mean, and one wrong cell of a table weighs much."""
    return (logits.squeeze(2) - labels).square()


@LOSSES.register("binary:focal")
def compute_binary_focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy times |label - probability|^gamma (Lin et al. 2017; for soft labels as Li et al. 2020)."""
    logits = logits.squeeze(2)
    wrong = (labels - logits.sigmoid()).abs()
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return wrong**GAMMA * cross_entropy


@LOSSES.register("categorical:focal")
def compute_categorical_focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy times (1 - p)^gamma with the probability p of the true class."""
    cross_entropy = KINDS["categorical"].compute_loss(logits, labels)
    return (1 - (-cross_entropy).exp()) ** GAMMA * cross_entropy


def choose_losses(functions: Mapping[str, str]) -> dict[str, Loss]:
    """The losses of `loss.functions` by kind of task."""
    return {kind: LOSSES[f"{kind}:{name}"] for kind, name in functions.items()}

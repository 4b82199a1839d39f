"""What is minimised, by name: a loss of a kind of task, in place of the kind's own (`loss.functions`).

An entry is named `KIND:NAME` and takes logits [B, n, K] of n tasks and labels [B, n] without NaN; it returns [B, n], with a gradient.
One of a dense kind takes outputs [B, K, H, W] and targets (`DenseKind.decode_labels`), which are finite where they are not labelled,
and returns the loss of every pixel [B, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from distbranch.config.sections import LossConfig
from distbranch.kinds import KINDS, Loss
from distbranch.kinds.dense import DenseKind
from distbranch.registry import Registry
from distbranch.tasks import MapLosses, Task, TaskSet

GAMMA = 2.0  # of the focal loss: its authors' choice, and the best of their table
BERHU_SHARE = 0.2  # of the largest error, above which the loss is a parabola (Laina et al. 2016)

LOSSES: Registry[Loss] = Registry("loss")
for _kind in ("binary", "categorical", "ordinal"):
    LOSSES.register(f"{_kind}:cross-entropy")(KINDS[_kind].compute_loss)
LOSSES.register("number:smooth-l1")(KINDS["number"].compute_loss)
for _kind, _name in {
    "segmentation": "cross-entropy",
    "depth": "absolute",
    "normals": "cosine",
    "heat": "absolute",
}.items():
    _dense = KINDS[_kind]
    assert isinstance(_dense, DenseKind)
    LOSSES.register(f"{_kind}:{_name}")(_dense.compute_pixel_losses)


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


@LOSSES.register("depth:log")
def compute_log_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """|log(1 + z) - log(1 + t)| of depth z and truth t: near things weigh more; below 0 the logarithm is that of |z|, with a minus."""
    found = outputs[:, 0]
    return (found.sign() * found.abs().log1p() - targets.log1p()).abs()


@LOSSES.register("depth:berhu")
def compute_berhu(outputs: Tensor, targets: Tensor) -> Tensor:
    """The error e up to c, (e^2 + c^2) / 2c beyond it (Laina et al. 2016), c a fifth of the largest error of the sample.

    Theirs is that of the batch, by which the loss of a sample would depend on the number of ranks and passes.
    """
    errors = (outputs[:, 0] - targets).abs()
    labelled = torch.where(targets > 0, errors.detach(), 0)
    limit = BERHU_SHARE * labelled.amax(dim=(1, 2), keepdim=True)
    # Where all errors are 0 any limit will do.
    limit = torch.where(limit > 0, limit, 1)
    return torch.where(errors <= limit, errors, (errors.square() + limit**2) / (2 * limit))


def choose_losses(functions: Mapping[str, str]) -> dict[str, Loss]:
    """The losses of `loss.functions` by kind of task."""
    return {kind: LOSSES[f"{kind}:{name}"] for kind, name in functions.items()}


def build_task_set(tasks: Sequence[Task], config: LossConfig) -> TaskSet:
    """Tasks with the losses that a configuration chooses.

    Raises:
        UserError: class weights of a task that has no classes per pixel, or another number of them.
    """
    for_maps = MapLosses(config.at, config.class_weights)
    return TaskSet(tasks, choose_losses(config.functions), for_maps)

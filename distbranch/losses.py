"""What is minimised, by name: a loss of a kind of task, in place of the kind's own (`loss.functions`).

An entry is named `KIND:NAME` and takes logits [B, n, K] of n tasks and labels [B, n] without NaN; it returns [B, n], with a gradient.
One of a dense kind takes outputs [B, K, H, W] and targets (`DenseKind.decode_labels`), which are finite where they are not labelled,
and returns the loss of every pixel [B, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from distbranch.config.training import LossConfig
from distbranch.kinds import KINDS, Loss
from distbranch.kinds.dense import DenseKind
from distbranch.registry import Registry
from distbranch.tasks import LossOptions, Task, TaskSet

GAMMA = 2.0  # of the focal loss: its authors' choice, and the best of their table
# Of the asymmetric loss, its authors' (Ridnik et al. 2021): a negative that is almost right counts next to nothing, and below a
# probability of SHIFT nothing.
GAMMA_POSITIVE, GAMMA_NEGATIVE = 1.0, 4.0
SHIFT = 0.05
ASYMMETRIC_SMOOTHING = 0.1  # of classes, without which no wrong class would count
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


@LOSSES.register("binary:asymmetric")
def compute_binary_asymmetric(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy times (1 - p)^gamma of what is true, with a larger gamma for no than for yes (Ridnik et al. 2021)."""
    logits = logits.squeeze(2)
    positive = logits.sigmoid()
    negative = (1 - positive + SHIFT).clamp(max=1)
    cross_entropy = -labels * functional.logsigmoid(logits) - (1 - labels) * negative.log()
    wrong = 1 - labels * positive - (1 - labels) * negative
    gamma = GAMMA_POSITIVE * labels + GAMMA_NEGATIVE * (1 - labels)
    return wrong**gamma * cross_entropy


@LOSSES.register("categorical:asymmetric")
def compute_categorical_asymmetric(logits: Tensor, labels: Tensor) -> Tensor:
    """Smoothed cross-entropy whose terms are multiplied by (1 - p)^1 of the true class, p^4 of the others (Ridnik et al. 2021)."""
    logs = logits.log_softmax(dim=2)
    shares = logs.exp()
    is_true = functional.one_hot(labels.long(), logits.shape[2]).bool()
    focus = torch.where(is_true, (1 - shares) ** GAMMA_POSITIVE, shares**GAMMA_NEGATIVE)
    spread = ASYMMETRIC_SMOOTHING / logits.shape[2]
    targets = torch.where(is_true, 1 - ASYMMETRIC_SMOOTHING + spread, spread)
    return -(targets * focus * logs).sum(dim=2)


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


def choose_losses(functions: Mapping[str, str], smoothing: float = 0.0) -> dict[str, Loss]:
    """The losses of `loss.functions` by kind of task, with `loss.label_smoothing`."""
    losses = {kind: LOSSES[f"{kind}:{name}"] for kind, name in functions.items()}
    if smoothing:
        of_binary = losses.get("binary", KINDS["binary"].compute_loss)
        losses["binary"] = partial(_compute_smoothed_binary, of_binary, smoothing)
        losses["categorical"] = partial(_compute_smoothed_categorical, smoothing)
    return losses


def _compute_smoothed_binary(
    loss: Loss, smoothing: float, logits: Tensor, labels: Tensor
) -> Tensor:
    return loss(logits, labels * (1 - smoothing) + smoothing / 2)


def _compute_smoothed_categorical(smoothing: float, logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(
        logits.movedim(2, 1), labels.long(), reduction="none", label_smoothing=smoothing
    )


def build_task_set(tasks: Sequence[Task], config: LossConfig) -> TaskSet:
    """Tasks with the losses that a configuration chooses.

    Raises:
        UserError: class weights of a task that has another number of classes.
    """
    # Of words it needs the numbers (label_weights.py), and float() takes no word.
    class_weights = {name: tuple(map(float, own)) for name, own in config.class_weights.items()}
    assert not isinstance(config.positive_weights, str)
    positive_weights = {name: float(own) for name, own in config.positive_weights.items()}
    options = LossOptions(config.at, class_weights, positive_weights)
    return TaskSet(tasks, choose_losses(config.functions, config.label_smoothing), options)

"""The optimiser, its named slots, and the learning rate as a pure function of the step.

Slots are carried by parameter name (`units.fc7.2.product.weight:exp_avg`), so that they can be copied with their branch.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distbranch.config import OptimConfig
from distbranch.errors import UserError
from distbranch.models.baselines import Baseline
from distbranch.registry import Registry

SECOND_BETA = 0.999  # of Adam and AdamW; their first one is `optim.momentum`
POLICY_WEIGHT_DECAY = 5e-4
SGD_MIXING_RATE = (
    100.0  # as a multiple, as NDDR-CNN was published with; cross-stitch took 100 to 1,000
)

ParameterGroups = list[dict[str, Any]]
# From the groups of parameters (those without weight decay say so) to an optimiser, whose state is tensors by parameter.
OPTIMISERS: Registry[Callable[[ParameterGroups, OptimConfig], torch.optim.Optimizer]] = Registry(
    "optimiser"
)


def build_optimizer(
    network: nn.Module,
    config: OptimConfig,
    others: Sequence[nn.Parameter] = (),
    *,
    baseline: Baseline | None = None,
    mixing_rate: float | None = None,
) -> torch.optim.Optimizer:
    """The configured optimiser over all weights; fused, which is several times faster than a loop over them.

    Weight decay falls on convolutions and products alone: norms and biases, which have one dimension, are left as they are.

    Args:
        network: what is trained.
        config: of the optimiser.
        others: what is trained with the network, without weight decay.
        baseline: that of the network, if it is one.
        mixing_rate: the learning rate of the weights by which it mixes tasks, as a multiple of that of all others; None: 100 of
            SGD, 1 of others, whose steps do not depend on how small a gradient is.
    """
    mixing = [] if baseline is None else baseline.list_mixing()
    is_mixing = set(map(id, mixing))
    trained = [
        parameter
        for parameter in network.parameters()
        if parameter.requires_grad and id(parameter) not in is_mixing
    ]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    parameters: ParameterGroups = [
        {"params": matrices},
        {"params": [*vectors, *others], "weight_decay": 0.0},
    ]
    if baseline is not None and mixing:
        if mixing_rate is None:
            mixing_rate = SGD_MIXING_RATE if config.name == "sgd" else 1.0
        own: dict[str, Any] = {"params": mixing, "rate_multiple": mixing_rate}
        parameters.append(own if baseline.decays else own | {"weight_decay": 0.0})
    optimizer = OPTIMISERS[config.name](parameters, config)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"The optimiser {config.name!r} should be a torch.optim.Optimizer, found {type(optimizer).__name__}."
        )
    return optimizer


def _list_options(config: OptimConfig) -> dict[str, Any]:
    return {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}


@OPTIMISERS.register("sgd")
def _build_sgd(groups: ParameterGroups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=config.momentum, **_list_options(config))


@OPTIMISERS.register("adam")
def _build_adam(groups: ParameterGroups, config: OptimConfig) -> torch.optim.Optimizer:
    betas = (config.momentum, SECOND_BETA)
    return torch.optim.Adam(groups, betas=betas, **_list_options(config))


@OPTIMISERS.register("adamw")
def _build_adamw(groups: ParameterGroups, config: OptimConfig) -> torch.optim.Optimizer:
    betas = (config.momentum, SECOND_BETA)
    return torch.optim.AdamW(groups, betas=betas, **_list_options(config))


def build_policy_optimizer(logits: nn.Parameter, lr: float) -> torch.optim.Optimizer:
    """That of AdaShare's policy, with the weight decay of its authors."""
    return torch.optim.Adam([logits], lr=lr, weight_decay=POLICY_WEIGHT_DECAY)


def list_slots(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The optimiser's tensors as `parameter:slot`.

    Raises:
        UserError: it keeps something else of a parameter, which no checkpoint would hold.
    """
    slots: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                slots[f"{name}:{slot}"] = value.detach()
            elif value is not None:
                raise UserError(
                    f"The optimiser {type(optimizer).__name__} should keep its state as tensors, which a checkpoint holds, found {slot!r}, "
                    f"a {type(value).__name__}."
                )
    return slots


def load_slots(
    optimizer: torch.optim.Optimizer, network: nn.Module, slots: Mapping[str, Tensor]
) -> None:
    """Put named tensors into a new optimiser, each in the memory layout of its parameter (fused steps need that).

    Those of parameters that it does not have are left out.
    """
    own_parameters = {
        id(parameter) for group in optimizer.param_groups for parameter in group["params"]
    }
    parameters = {
        name: one for name, one in network.named_parameters() if id(one) in own_parameters
    }
    for key, value in slots.items():
        name, _, slot = key.rpartition(":")
        if name not in parameters:
            continue
        parameter = parameters[name]
        if value.shape == parameter.shape:
            own = torch.empty_like(parameter, requires_grad=False).copy_(value)
        elif slot == "step" and not optimizer.defaults.get("fused"):
            own = value.clone().to("cpu")  # where it can be read without a wait for the GPU
        else:  # of Adam, whose fused kernel counts the steps
            own = value.clone().to(parameter.device)
        optimizer.state[parameter][slot] = own


def shorten_memory(
    slots: Mapping[str, Tensor], parameters: Collection[str], steps: int, config: OptimConfig
) -> dict[str, Tensor]:
    """Slots of Adam in which the averages of some parameters count as if they were taken over `steps` steps, if that is fewer.

    The averages as Adam corrects them stay as they are, so that no step jumps; what comes next changes them sooner. A branch of
    few tasks has a gradient several times smaller than the branch of all tasks that it was made from: divided by the root of
    that one's mean square, its steps would stay as many times too small for about 1 / (1 - SECOND_BETA) steps.

    Args:
        slots: by `parameter:slot`; all that are not Adam's stay as they are.
        parameters: names of those whose memory is shortened.
        steps: at least 1.
        config: of an Adam.
    """
    betas = {"exp_avg": config.momentum, "exp_avg_sq": SECOND_BETA}
    found = dict(slots)
    for name in parameters:
        taken = slots.get(f"{name}:step")
        if taken is None or taken <= steps:
            continue
        found[f"{name}:step"] = torch.full_like(taken, steps)
        # Adam divides an average of n steps by 1 - beta^n.
        for slot, beta in betas.items():
            share = (1 - beta**steps) / (1 - beta ** float(taken))
            found[f"{name}:{slot}"] = slots[f"{name}:{slot}"] * share
    return found


def compute_learning_rate(
    config: OptimConfig, *, iteration: int, schedule_start: int, iterations: int
) -> float:
    """The rate of step `iteration` (counted from 0) of a schedule that began at `schedule_start` and ends at `iterations`."""
    since = iteration - schedule_start
    rate = config.lr
    if config.schedule == "step":
        rate *= config.decay_factor ** (since // config.decay_every)
    elif config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * since / max(1, iterations - schedule_start)))
    if iteration < config.warmup:
        rate *= (iteration + 1) / config.warmup
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` from the next step on, or the multiple of it that a group of parameters has."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_multiple", 1.0)
